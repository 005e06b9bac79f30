"""The forward pass with the same bits on every machine.

Products with weight matrices are exact sums of integers (`edgekit.pipeline.rounding._integers`), those of attention are
summed term by term by `edgekit.pipeline.rounding.accumulate`, and exponentials, sines and cosines are computed by
additions and multiplications: BLAS and the functions of numpy and of the C library differ in their last bits from one
processor to the next. Everything else is elementwise, a square root, or a sum along a row, whose order numpy fixes on
every machine.


The order is not fixed for recurrences, experts, attention with sinks, chunked or bidirectional attention, and the error
function. The rotary frequencies are numpy's float64 powers, rounded to float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Executor

import attrs
import numpy as np

from edgekit.architectures.forward import KVCache, Transformer, visible
from edgekit.architectures.numpy_ops import NumpyOps
from edgekit.architectures.ops import Activation, Attend, Gate
from edgekit.architectures.rope import Rope, Rotation
from edgekit.pipeline.rounding._integers import Integers, Scratch, product, spread_out
from edgekit.pipeline.rounding._kernels import NUMPY, Accumulate, Kernels
from edgekit.typing import F32, Array, Bools, Ints

#: Queries whose attention is computed at a time; bounds the memory of the scores.
_QUERIES = 128
#: Elements of an activation that are computed at once: 256 KiB of float32.
_AT_ONCE = 1 << 16
#: Columns of a product that one thread computes.
_PIECE = 256
#: Additions of a product from which several threads are worth their start.
_SHARED = 1 << 22
#: pi / 2 as a sum of two float64 numbers; small integer multiples of the first are exact.
_QUARTER_HIGH, _QUARTER_LOW = 1.5707963267341256, 6.077100506506192e-11
_TERMS = 10


def exp(x: F32, kernels: Kernels = NUMPY) -> F32:
    """Return e^x, float32, within 2 units in the last place; 0 below -87."""
    found = np.array(x, np.float32, order="C")
    kernels.exponential(found)
    return found


def tanh(x: F32, kernels: Kernels = NUMPY) -> F32:
    """Return the hyperbolic tangent of x, float32, computed from `exp`."""
    small = exp(np.float32(-2) * np.abs(x), kernels)
    return np.copysign((np.float32(1) - small) / (np.float32(1) + small), x)


def turns(angle: F32) -> tuple[F32, F32]:
    """Return the cosines and sines, float32, of angles below 10^5 radians.

    The angle is reduced to a quarter turn; Taylor series in float64 do the rest.
    """
    wide = angle.astype(np.float64)
    quarter = np.rint(wide * (2 / math.pi))
    rest = wide - quarter * _QUARTER_HIGH - quarter * _QUARTER_LOW
    square = rest * rest
    sine, cosine = np.zeros_like(rest), np.zeros_like(rest)
    for k in range(_TERMS - 1, -1, -1):
        sine = sine * square + (-1) ** k / math.factorial(2 * k + 1)
        cosine = cosine * square + (-1) ** k / math.factorial(2 * k)
    sine *= rest
    turn = quarter.astype(np.int64) & 3
    pick = (cosine, -sine, -cosine, sine), (sine, cosine, -sine, -cosine)
    found = tuple(np.choose(turn, values).astype(np.float32) for values in pick)
    return found[0], found[1]


def silu(x: F32, kernels: Kernels = NUMPY) -> F32:
    """Return ``x / (1 + exp(-x))``, float32, with `exp` of this module."""
    below = exp(-x, kernels)
    below += np.float32(1)
    return np.divide(x, below, out=below)


def gelu_tanh(x: F32, kernels: Kernels = NUMPY) -> F32:
    """Return the tanh approximation of GELU, float32, with `tanh` of this module."""
    cube = x * x * x
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * cube)
    return np.float32(0.5) * x * (np.float32(1) + tanh(inner, kernels))


_ACTIVATIONS: dict[str, Callable[[F32, Kernels], F32]] = {"silu": silu, "gelu_tanh": gelu_tanh, "tanh": tanh}


@functools.lru_cache(64)
def _hidden(start: int, stop: int, window: int | None) -> Bools:
    """Which of the keys from 0 on queries at ``start:stop`` must not see."""
    return ~visible(start, stop, 0, window)


def threaded(accumulate: Accumulate, pool: Executor | None) -> Accumulate:
    """Return the kernel on several threads; each computes its own columns of the result, so the bits are the same."""
    if pool is None:
        return accumulate

    def run(out: Array, b: Array, a: Array) -> None:
        if out.size * len(a) < _SHARED:
            return accumulate(out, b, a)
        parts = [slice(start, start + _PIECE) for start in range(0, out.shape[1], _PIECE)]
        b = np.ascontiguousarray(b)
        list(pool.map(lambda part: accumulate(out[:, part], b, a[:, part]), parts))

    return run


@attrs.frozen(eq=False)
class OrderedOps(NumpyOps):
    """`NumpyOps` with the same bits on every machine; products with matrices are exact sums of integers.

    Attributes:
        kernels: the arithmetic.
        threads: its threads; None computes on the caller's.
        scratch: the memory of products.
    """

    kernels: Kernels = NUMPY
    threads: Executor | None = None
    scratch: Scratch | None = None
    #: The last input of a product and its integers: the next product often has the same.
    _last: list[tuple[F32, Integers]] = attrs.field(factory=list, init=False, repr=False)

    def product(self, name: str, x: F32) -> F32:
        """See `Ops.product`."""
        rows, weights = x.reshape(-1, x.shape[-1]), self.weights
        if weights.observe is not None:
            weights.observe(f"{name}.weight", rows)
        matrix = Integers.of_rows(weights.values(f"{name}.weight"), self.kernels, self.threads)
        out = product(self._integers(x, rows), matrix, self.kernels, self.threads, self.scratch)
        if f"{name}.bias" in weights.tensors:
            out += weights.values(f"{name}.bias")
        return out.reshape(*x.shape[:-1], -1)

    def _integers(self, x: F32, rows: F32) -> Integers:
        if not self._last or self._last[0][0] is not x:
            self._last[:] = [(x, Integers.of_rows(rows, self.kernels, self.threads))]
        return self._last[0][1]

    def rms_norm(self, x: F32, eps: float, name: str | None = None) -> F32:
        """See `Ops.rms_norm`; some rows at a time, which stay in a cache."""
        rows, out = x.reshape(-1, x.shape[-1]), np.empty(x.shape, np.float32)
        flat, step = out.reshape(rows.shape), max(1, _AT_ONCE // max(1, x.shape[-1]))

        def part(start: int) -> None:
            piece = slice(start, start + step)
            flat[piece] = super(OrderedOps, self).rms_norm(rows[piece], eps, name)

        spread_out(self.threads, part, range(0, len(rows), step))
        return out

    def activate(self, kind: Activation, x: F32) -> F32:
        """See `Ops.activate`."""
        return self._elementwise(kind, x) if kind in _ACTIVATIONS else super().activate(kind, x)

    def gated(self, kind: Gate, gate: F32, up: F32) -> F32:
        """See `Ops.gated`; the gate is overwritten."""
        return self._elementwise(kind, gate, up) if kind in _ACTIVATIONS else super().gated(kind, gate, up)

    def _elementwise(self, kind: str, x: F32, factor: F32 | None = None) -> F32:
        """An activation, or, in the place of x, its product with a factor; a piece that stays in a cache at a time."""
        rows = x.reshape(-1, x.shape[-1])
        out = x if factor is not None and x.flags.c_contiguous and x.flags.writeable else np.empty(x.shape, np.float32)
        flat = out.reshape(rows.shape)
        factors = None if factor is None else factor.reshape(rows.shape)
        step = max(1, _AT_ONCE // max(1, x.shape[-1]))

        def part(start: int) -> None:
            piece = slice(start, start + step)
            found = _ACTIVATIONS[kind](rows[piece], self.kernels)
            flat[piece] = found if factors is None else found * factors[piece]

        spread_out(self.threads, part, range(0, len(rows), step))
        return out

    def rotate(self, x: F32, rope: Rope) -> F32:
        """See `Ops.rotate`."""
        if rope not in self._turns:
            start, stop = self.past.length, self.past.length + self.tokens.shape[1]
            angle = np.arange(start, stop, dtype=np.float32)[:, None] * rope.frequencies(stop).astype(np.float32)
            factor = np.float32(1.0 if rope.scaling is None else rope.scaling.attention_factor)
            cosine, sine = turns(angle)
            self._turns[rope] = Rotation(cosine * factor, sine * factor, rope.neighbours)
        turn, out = self._turns[rope], np.empty(x.shape, np.float32)

        def sequence(number: int) -> None:
            out[number] = turn(x[number])

        spread_out(self.threads, sequence, range(len(x)))
        return out

    def softcap(self, x: F32, cap: float) -> F32:
        """See `Ops.softcap`."""
        return np.float32(cap) * tanh(x / np.float32(cap), self.kernels)

    def attend(self, queries: F32, keys: F32, values: F32, how: Attend, sinks: str | None = None) -> F32:
        """See `Ops.attend`."""
        if sinks is not None or how.chunk is not None or not how.causal:
            return super().attend(queries, keys, values, how, sinks)
        batch, heads, n, _ = queries.shape
        groups, size = keys.shape[1], values.shape[-1]
        shared = heads // groups
        out = np.empty((batch, n, heads, size), np.float32)

        def group(number: int) -> None:
            sequence, group = divmod(number, groups)
            own = slice(group * shared, (group + 1) * shared)
            heads_out = out[sequence, :, own].transpose(1, 0, 2)
            self._group(heads_out, queries[sequence, own], keys[sequence, group], values[sequence, group], how)

        spread_out(self.threads, group, range(batch * groups))
        return out.reshape(batch, n, heads * size)

    def _group(self, out: F32, queries: F32, keys: F32, values: F32, how: Attend) -> None:
        """Write the attention of the heads that share keys and values.

        Args:
            out: [heads, n, size].
            queries: [heads, n, size], of the last n positions.
            keys: [m, size], of all positions.
            values: [m, size], of all positions.
            how: mask and scale.
        """
        heads, n, size = queries.shape
        m, turned = len(keys), np.ascontiguousarray(keys.T)
        for start in range(0, n, _QUERIES):
            stop = min(start + _QUERIES, n)
            first = 0 if how.window is None else max(0, m - n + start - how.window + 1)
            last = m - n + stop
            scaled = queries[:, start:stop].reshape(-1, size) * np.float32(how.scale)
            # By keys: the softmax's weights are then as the second product takes them.
            scores = np.zeros((last - first, len(scaled)), np.float32)
            self.kernels.accumulate(scores, turned[:, first:last], np.ascontiguousarray(scaled.T))
            if how.softcap is not None:
                scores = self.softcap(scores, how.softcap)
            by_head = scores.reshape(last - first, heads, stop - start)
            hidden = _hidden(m - n + start - first, last - first, how.window)
            # Without a window, every query sees the keys before the first query.
            some = 0 if how.window is not None else m - n + start - first
            np.copyto(by_head[some:], -np.inf, where=hidden.T[some:, None])
            sums = self.kernels.weigh(scores)
            mixed = np.zeros((len(scaled), values.shape[1]), np.float32)
            self.kernels.accumulate(mixed, scores, values[first:last])
            mixed /= sums[:, None]
            out[:, start:stop] = mixed.reshape(heads, stop - start, -1)


@attrs.frozen(eq=False)
class OrderedTransformer(Transformer):
    """A model that computes the same bits on every machine.

    Attributes:
        kernels: the arithmetic.
        threads: its threads; None computes on the caller's.
        scratch: the memory of products.
    """

    kernels: Kernels = NUMPY
    threads: Executor | None = None
    scratch: Scratch | None = None

    def ops(self, tokens: Ints, past: KVCache) -> NumpyOps:
        """Return the operations of one step for token ids [n] after the cached ones."""
        return OrderedOps(self.weights, past, tokens, kernels=self.kernels, threads=self.threads, scratch=self.scratch)


__all__ = ["OrderedOps", "OrderedTransformer", "exp", "tanh", "threaded", "turns"]
