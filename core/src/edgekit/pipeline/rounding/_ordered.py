"""The forward pass with sums in a fixed order, so that the hidden states are equal on every machine.

Matrix products, attention and moments are summed term by term by `edgekit.pipeline.rounding.accumulate`, and
exponentials, sines and cosines are computed by additions and multiplications: BLAS and the functions of numpy and of
the C library differ in their last bits from one processor to the next. Everything else is elementwise, a square root,
or a sum along a row, whose order numpy fixes on every machine.

The order is not fixed for recurrences, experts, attention with sinks, chunked or bidirectional attention, and the error
function. The rotary frequencies are numpy's float64 powers, rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor

import attrs
import numpy as np

from edgekit.architectures.forward import KVCache, Transformer, visible
from edgekit.architectures.numpy_ops import NumpyOps
from edgekit.architectures.ops import Activation, Attend, Gate
from edgekit.architectures.rope import Rope, Rotation
from edgekit.pipeline.rounding._kernels import Accumulate, accumulate
from edgekit.typing import F32, Array, Ints

#: Queries whose attention is computed at a time; bounds the memory of the scores.
_QUERIES = 128
#: Columns of a product that one thread computes.
_PIECE = 256
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1]
#: pi / 2 as a sum of two float64 numbers; small integer multiples of the first are exact.
_QUARTER_HIGH, _QUARTER_LOW = 1.5707963267341256, 6.077100506506192e-11
_TERMS = 10
_LEAST, _MOST = np.float32(-87), np.float32(88)


def exp(x: F32) -> F32:
    """Return e^x, float32, within 2 units in the last place; 0 below -87. By the polynomial of the Cephes library."""
    inside = np.clip(x, _LEAST, _MOST)
    power = np.rint(inside * _LOG2E)
    inside -= power * _LN2_HIGH
    inside -= power * _LN2_LOW
    found = np.full_like(inside, np.float32(_EXP[0]))
    for coefficient in _EXP[1:]:
        found *= inside
        found += np.float32(coefficient)
    found *= inside
    found *= inside
    found += inside
    found += np.float32(1)
    found *= ((power.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    found *= x > _LEAST
    return found


def tanh(x: F32) -> F32:
    """Return the hyperbolic tangent of x, float32, computed from `exp`."""
    small = exp(np.float32(-2) * np.abs(x))
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


def silu(x: F32) -> F32:
    """Return ``x / (1 + exp(-x))``, float32, with `exp` of this module."""
    return x / (np.float32(1) + exp(-x))


def gelu_tanh(x: F32) -> F32:
    """Return the tanh approximation of GELU, float32, with `tanh` of this module."""
    cube = x * x * x
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * cube)
    return np.float32(0.5) * x * (np.float32(1) + tanh(inner))


_ACTIVATIONS: dict[str, Callable[[F32], F32]] = {"silu": silu, "gelu_tanh": gelu_tanh, "tanh": tanh}


def threaded(accumulate: Accumulate, pool: Executor | None) -> Accumulate:
    """Return the kernel on several threads; each computes its own columns of the result, so the bits are the same."""
    if pool is None:
        return accumulate

    def run(out: Array, b: Array, a: Array) -> None:
        parts = [slice(start, start + _PIECE) for start in range(0, out.shape[1], _PIECE)]
        list(pool.map(lambda part: accumulate(out[:, part], b, a[:, part]), parts))

    return run


def mean_product(a: F32, b: F32, accumulate: Accumulate) -> F32:
    """Return ``a^T b / tokens``, float32 [cols, cols], for inputs [tokens, cols], summed token by token.

    If `a` and `b` are the same array, the result is symmetric and only half of it is computed.
    """
    cols = a.shape[1]
    mean = np.zeros((cols, b.shape[1]), np.float32)
    for start in range(0, cols, _PIECE):
        part = slice(start, start + _PIECE)
        first = start if a is b else 0
        accumulate(mean[part, first:], a[:, part], b[:, first:])
    for start in range(0, cols if a is b else 0, _PIECE):
        stop = start + _PIECE
        mean[stop:, start:stop] = mean[start:stop, stop:].T
    mean /= np.float32(len(a))
    return mean


@attrs.frozen(eq=False)
class OrderedOps(NumpyOps):
    """`NumpyOps` with sums in a fixed order.

    Attributes:
        add_up: the kernel that adds products.
    """

    add_up: Accumulate = accumulate

    def product(self, name: str, x: F32) -> F32:
        """See `Ops.product`."""
        rows, weights = x.reshape(-1, x.shape[-1]), self.weights
        if weights.observe is not None:
            weights.observe(f"{name}.weight", rows)
        matrix = weights.values(f"{name}.weight")
        turned = np.zeros((len(matrix), len(rows)), np.float32)
        self.add_up(turned, matrix.T, np.ascontiguousarray(rows.T))
        out = np.ascontiguousarray(turned.T)
        if f"{name}.bias" in weights.tensors:
            out += weights.values(f"{name}.bias")
        return out.reshape(*x.shape[:-1], -1)

    def rotate(self, x: F32, rope: Rope) -> F32:
        """See `Ops.rotate`."""
        if rope not in self._turns:
            start, stop = self.past.length, self.past.length + self.tokens.shape[1]
            angle = np.arange(start, stop, dtype=np.float32)[:, None] * rope.frequencies(stop).astype(np.float32)
            factor = np.float32(1.0 if rope.scaling is None else rope.scaling.attention_factor)
            cosine, sine = turns(angle)
            self._turns[rope] = Rotation(cosine * factor, sine * factor, rope.neighbours)
        return self._turns[rope](x)

    def activate(self, kind: Activation, x: F32) -> F32:
        """See `Ops.activate`."""
        return _ACTIVATIONS[kind](x) if kind in _ACTIVATIONS else super().activate(kind, x)

    def gated(self, kind: Gate, gate: F32, up: F32) -> F32:
        """See `Ops.gated`."""
        return _ACTIVATIONS[kind](gate) * up if kind in _ACTIVATIONS else super().gated(kind, gate, up)

    def softcap(self, x: F32, cap: float) -> F32:
        """See `Ops.softcap`."""
        return np.float32(cap) * tanh(x / np.float32(cap))

    def attend(self, queries: F32, keys: F32, values: F32, how: Attend, sinks: str | None = None) -> F32:
        """See `Ops.attend`."""
        if sinks is not None or how.chunk is not None or not how.causal:
            return super().attend(queries, keys, values, how, sinks)
        batch, heads, n, _ = queries.shape
        shared, size = heads // keys.shape[1], values.shape[-1]
        out = np.empty((batch, n, heads, size), np.float32)
        for sequence in range(batch):
            for head in range(heads):
                own = keys[sequence, head // shared], values[sequence, head // shared]
                out[sequence, :, head] = self._head(queries[sequence, head], *own, how)
        return out.reshape(batch, n, heads * size)

    def _head(self, queries: F32, keys: F32, values: F32, how: Attend) -> F32:
        """Return the attention of one head, float32 [n, size].

        Args:
            queries: [n, size], of the last n positions.
            keys: [m, size], of all positions.
            values: [m, size], of all positions.
            how: mask and scale.
        """
        n, m = len(queries), len(keys)
        turned = np.ascontiguousarray(keys.T)
        # A further column of ones sums the softmax's weights in the same order as the values.
        extended = np.concatenate([values, np.ones((m, 1), np.float32)], axis=1)
        out = np.empty((n, values.shape[1]), np.float32)
        for start in range(0, n, _QUERIES):
            stop = min(start + _QUERIES, n)
            first = 0 if how.window is None else max(0, m - n + start - how.window + 1)
            last = m - n + stop
            scores = np.zeros((stop - start, last - first), np.float32)
            scaled = queries[start:stop] * np.float32(how.scale)
            self.add_up(scores, scaled.T, turned[:, first:last])
            if how.softcap is not None:
                scores = self.softcap(scores, how.softcap)
            scores[~visible(m - n + start, last, first, how.window)] = -np.inf
            weights = exp(scores - scores.max(axis=1, keepdims=True))
            mixed = np.zeros((stop - start, extended.shape[1]), np.float32)
            self.add_up(mixed, weights.T, extended[first:last])
            out[start:stop] = mixed[:, :-1] / mixed[:, -1:]
        return out


@attrs.frozen(eq=False)
class OrderedTransformer(Transformer):
    """A model whose forward pass sums in a fixed order.

    Attributes:
        add_up: the kernel that adds products.
    """

    add_up: Accumulate = accumulate

    def ops(self, tokens: Ints, past: KVCache) -> NumpyOps:
        """Return the operations of one step for token ids [n] after the cached ones."""
        return OrderedOps(self.weights, past, tokens, add_up=self.add_up)


__all__ = ["OrderedOps", "OrderedTransformer", "exp", "mean_product", "tanh", "threaded", "turns"]
