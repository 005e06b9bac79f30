"""The operations in numpy and float32: readable, exact within rounding, and the judge of every other runtime's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np

from edgekit.architectures import _numerics as numerics
from edgekit.architectures._weights import Weights
from edgekit.architectures.ops import Activation, Attend, Ffn, Gate, Pooling, Routing
from edgekit.architectures.rope import Rope, Rotation
from edgekit.architectures.state import KVCache
from edgekit.typing import F32, Ints

_ACTIVATIONS: dict[Activation, Callable[[F32], F32]] = {
    "silu": numerics.silu,
    "gelu_tanh": numerics.gelu_tanh,
    "gelu": numerics.gelu,
    "relu2": numerics.relu2,
    "sigmoid": numerics.sigmoid,
    "softplus": numerics.softplus,
    "tanh": np.tanh,
}


@attrs.frozen(eq=False)
class NumpyOps:
    """One step in numpy; see `edgekit.architectures.ops.Ops` for what each operation computes.

    Attributes:
        weights: the model's tensors.
        past: what was remembered; the step adds to it, except to its `tokens`.
        tokens: the new ones, [batch, n].
    """

    weights: Weights
    past: KVCache
    tokens: Ints
    _turns: dict[Rope, Rotation] = attrs.field(factory=dict, init=False, repr=False)

    def embed(self, name: str) -> F32:
        """See `Ops.embed`."""
        return self.weights.rows(f"{name}.weight", self.tokens)

    def embed_positions(self, name: str) -> F32:
        """See `Ops.embed_positions`."""
        start = self.past.length
        positions = np.arange(start, start + self.tokens.shape[1])
        return self.weights.rows(f"{name}.weight", np.broadcast_to(positions, self.tokens.shape))

    def product(self, name: str, x: F32) -> F32:
        """See `Ops.product`."""
        return self.weights.product(name, x)

    def row(self, name: str, number: int) -> F32:
        """See `Ops.row`."""
        row: F32 = self.weights.values(f"{name}.weight")[number]
        return row

    def vector(self, name: str) -> F32:
        """See `Ops.vector`."""
        row: F32 = self.weights.values(name)[0]
        return row

    def rms_norm(self, x: F32, eps: float, name: str | None = None) -> F32:
        """See `Ops.rms_norm`."""
        normalized = numerics.rms_norm(x, eps)
        return normalized if name is None else normalized * self.weights.values(name)

    def group_norm(self, x: F32, eps: float, name: str) -> F32:
        """See `Ops.group_norm`."""
        return numerics.rms_norm(x, eps) * self.weights.values(name)[:, None, :]

    def layer_norm(self, x: F32, eps: float, name: str) -> F32:
        """See `Ops.layer_norm`."""
        centered = x - x.mean(axis=-1, keepdims=True)
        normalized = numerics.rms_norm(centered, eps)
        return normalized * self.weights.values(f"{name}.weight") + self.weights.values(f"{name}.bias")

    def unit(self, x: F32, eps: float) -> F32:
        """See `Ops.unit`."""
        normalized: F32 = x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + np.float32(eps))
        return normalized

    def add(self, a: F32, b: F32) -> F32:
        """See `Ops.add`."""
        return a + b

    def multiply(self, a: F32, b: F32) -> F32:
        """See `Ops.multiply`."""
        return a * b

    def scale(self, x: F32, factor: float) -> F32:
        """See `Ops.scale`."""
        return x * np.float32(factor)

    def activate(self, kind: Activation, x: F32) -> F32:
        """See `Ops.activate`."""
        return _ACTIVATIONS[kind](x)

    def gated(self, kind: Gate, gate: F32, up: F32) -> F32:
        """See `Ops.gated`."""
        return numerics.clipped_swiglu(gate, up) if kind == "clipped" else _ACTIVATIONS[kind](gate) * up

    def softcap(self, x: F32, cap: float) -> F32:
        """See `Ops.softcap`."""
        return numerics.softcap(x, cap)

    def split(self, x: F32, sizes: Sequence[int]) -> list[F32]:
        """See `Ops.split`."""
        return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=-1)

    def heads(self, x: F32, count: int) -> F32:
        """See `Ops.heads`."""
        return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)

    def joined(self, x: F32) -> F32:
        """See `Ops.joined`."""
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def rotate(self, x: F32, rope: Rope) -> F32:
        """See `Ops.rotate`."""
        if rope not in self._turns:
            start = self.past.length
            self._turns[rope] = rope.rotation(start, start + self.tokens.shape[1])
        return self._turns[rope](x)

    def temper(self, x: F32, scale: float, every: int, ahead: int) -> F32:
        """See `Ops.temper`."""
        start = self.past.length
        positions = np.arange(start, start + self.tokens.shape[1], dtype=np.float32)
        steps = np.floor((positions + np.float32(ahead)) / np.float32(every))
        tempered: F32 = x * (1 + np.float32(scale) * np.log1p(steps))[:, None]
        return tempered

    def remember(self, layer: int, keys: F32, values: F32) -> tuple[F32, F32]:
        """See `Ops.remember`."""
        return self.past.extend(layer, keys, values)

    def remembered(self, layer: int) -> tuple[F32, F32]:
        """See `Ops.remembered`."""
        return self.past.layers[layer]

    def attend(self, queries: F32, keys: F32, values: F32, how: Attend, sinks: str | None = None) -> F32:
        """See `Ops.attend`."""
        return numerics.attend(
            queries,
            keys,
            values,
            how.scale,
            how.softcap,
            how.window,
            chunk=how.chunk,
            causal=how.causal,
            sinks=None if sinks is None else self.vector(sinks),
        )

    def convolve(self, layer: int, name: str, x: F32) -> F32:
        """See `Ops.convolve`."""
        place = layer, "convolution"
        out, self.past.states[place] = numerics.convolve(
            x, self.weights.values(f"{name}.weight"), self.past.states.get(place)
        )
        return out + self.vector(f"{name}.bias") if f"{name}.bias" in self.weights.tensors else out

    def delta_rule(self, layer: int, queries: F32, keys: F32, values: F32, decay: F32, beta: F32, tiled: bool) -> F32:
        """See `Ops.delta_rule`."""
        place, shared = (layer, "recurrence"), values.shape[1] // keys.shape[1]
        q, k = (np.tile(x, (1, shared, 1, 1)) if tiled else x.repeat(shared, axis=1) for x in (queries, keys))
        out, self.past.states[place] = numerics.delta_rule(q, k, values, decay, beta, self.past.states.get(place))
        return out

    def scan(self, layer: int, x: F32, step: F32, decay: str, skip: str, inputs: F32, outputs: F32) -> F32:
        """See `Ops.scan`."""
        place = layer, "recurrence"
        a, d = self.weights.values(decay), self.weights.values(skip)
        out, self.past.states[place] = numerics.scan(x, step, a, d, inputs, outputs, self.past.states.get(place))
        return out

    def route(self, scores: F32, how: Routing, bias: str | None = None) -> F32:
        """See `Ops.route`."""
        return numerics.route(scores, how, None if bias is None else self.vector(bias))

    def route_sparsely(self, scores: F32, jitter: float) -> F32:
        """See `Ops.route_sparsely`."""
        return numerics.route_sparsely(scores, jitter)

    def experts(self, prefix: str, x: F32, weights: F32, ffn: Ffn) -> F32:
        """See `Ops.experts`: one expert after the other, each with the tokens that use it."""
        rows, shares = x.reshape(-1, x.shape[-1]), weights.reshape(-1, weights.shape[-1])
        out = np.zeros_like(rows)
        for number in range(shares.shape[1]):
            users = np.flatnonzero(shares[:, number])
            if not users.size:
                continue
            share = shares[users, number, None]
            given = rows[users] * share if ffn.weighted_input else rows[users]
            fed = self._expert(prefix, number, given, ffn)
            out[users] += fed if ffn.weighted_input else fed * share
        return out.reshape(x.shape)

    def _expert(self, prefix: str, number: int, rows: F32, ffn: Ffn) -> F32:
        def product(name: str, x: F32) -> F32:
            return self.weights.expert(f"{prefix}ffn_{name}_exps", number, x)

        if ffn.gate is None:
            inner = self.activate(ffn.activation, product("up", rows))
        elif ffn.fused:
            inner = self.gated(ffn.gate, *np.split(product("gate_up", rows), 2, axis=-1))
        else:
            inner = self.gated(ffn.gate, product("gate", rows), product("up", rows))
        return product("down", inner)

    def pool(self, x: F32, how: Pooling) -> F32:
        """See `Ops.pool`."""
        pooled: F32 = x.mean(axis=1) if how == "mean" else x[:, 0 if how == "first" else -1]
        return pooled


__all__ = ["NumpyOps"]
