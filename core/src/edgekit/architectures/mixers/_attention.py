"""Attention with grouped queries: full, with a sliding window or in chunks, gated, with sinks, without positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import attrs

from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Attend, Ops, V
from edgekit.architectures.rope import Rope


@attrs.frozen
class Temper:
    """Queries that grow with their position: see `edgekit.architectures.ops.Ops.temper`."""

    scale: float
    every: int
    ahead: int


@attrs.frozen
class Attention:
    """Attention.

    Attributes:
        heads, kv_heads, head_dim: sizes; each key head serves heads / kv_heads query heads.
        how: scale, window, soft cap.
        eps: epsilon of the norms of queries and keys.
        rope: how queries and keys rotate; None for a layer without positions.
        fused: whether Q, K and V are one matrix, ``attn_qkv``.
        bias, output_bias: whether Q, K and V, and the output matrix have biases.
        norm: RMSNorm of queries and keys before they rotate: of each ``head``, of all heads as one vector (``all``), or
            none.
        unit_norm: whether queries and keys are divided by their root mean square after they rotate (Llama 4).
        gated: whether ``attn_q`` is twice as wide, and the second half of each head's rows makes a gate, whose sigmoid
            multiplies what attention gives (Qwen 3.5).
        sinks: whether each head has a sink, ``attn_sinks``.
        temper: how queries grow with their position, or None.
        value_norm: whether each head's values are divided by their root mean square (Gemma 4).
        keys_as_values: whether there is no ``attn_v``, and keys before their norm are the values too (Gemma 4).
        shares: the layer whose keys and values are used instead of own ones, or None (Gemma 4).
    """

    heads: int
    kv_heads: int
    head_dim: int
    how: Attend
    eps: float
    rope: Rope | None = None
    fused: bool = False
    bias: bool = False
    output_bias: bool = False
    norm: Literal["none", "head", "all"] = "none"
    unit_norm: bool = False
    gated: bool = False
    sinks: bool = False
    temper: Temper | None = None
    value_norm: bool = False
    keys_as_values: bool = False
    shares: int | None = None

    name: ClassVar[str] = "attention"

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        split = {"attn_q": queries * (2 if self.gated else 1)}
        if self.shares is None:
            split |= {"attn_k": keys} if self.keys_as_values else {"attn_k": keys, "attn_v": keys}
        for name, rows in ({"attn_qkv": queries + 2 * keys} if self.fused else split).items():
            yield from matrix(name, (rows, width), self.bias)
        if self.norm != "none":
            yield "attn_q_norm.weight", (self.head_dim if self.norm == "head" else queries,)
            if self.shares is None:
                yield "attn_k_norm.weight", (self.head_dim if self.norm == "head" else keys,)
        yield from matrix("attn_output", (width, queries), self.output_bias)
        if self.sinks:
            yield "attn_sinks.weight", (self.heads,)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block = f"blk.{layer}."
        if self.shares is not None:
            queries, gate = ops.heads(ops.product(f"{block}attn_q", x), self.heads), None
            queries = self._turned(ops, f"{block}attn_q_norm.weight", queries)
            keys, values = ops.remembered(self.shares)
        else:
            queries, keys, values, gate = self._projected(ops, block, x)
            queries = self._turned(ops, f"{block}attn_q_norm.weight", queries)
            keys = self._turned(ops, f"{block}attn_k_norm.weight", keys)
            if self.value_norm:
                values = ops.rms_norm(values, self.eps)
            if self.temper is not None:
                queries = ops.temper(queries, self.temper.scale, self.temper.every, self.temper.ahead)
            keys, values = ops.remember(layer, keys, values)
        sinks = f"{block}attn_sinks.weight" if self.sinks else None
        mixed = ops.attend(queries, keys, values, self.how, sinks)
        if gate is not None:
            mixed = ops.multiply(mixed, ops.activate("sigmoid", gate))
        return ops.product(f"{block}attn_output", mixed)

    def _projected(self, ops: Ops[V], block: str, x: V) -> tuple[V, V, V, V | None]:
        """Queries, keys and values as heads, and the gate as states, if there is one."""
        counts = (self.heads, self.kv_heads, self.kv_heads)
        if self.fused:
            parts = ops.split(ops.product(f"{block}attn_qkv", x), [count * self.head_dim for count in counts])
        else:
            parts = [ops.product(f"{block}{name}", x) for name in ("attn_q", "attn_k")]
            parts.append(parts[1] if self.keys_as_values else ops.product(f"{block}attn_v", x))
        if self.norm == "all":
            for i, name in enumerate(("attn_q_norm", "attn_k_norm")):
                parts[i] = ops.rms_norm(parts[i], self.eps, f"{block}{name}.weight")
        queries, keys, values = (ops.heads(part, count) for part, count in zip(parts, counts, strict=True))
        if not self.gated:
            return queries, keys, values, None
        queries, gate = ops.split(queries, [self.head_dim, self.head_dim])
        return queries, keys, values, ops.joined(gate)

    def _turned(self, ops: Ops[V], norm: str, x: V) -> V:
        if self.norm == "head":
            x = ops.rms_norm(x, self.eps, norm)
        if self.rope is not None:
            x = ops.rotate(x, self.rope)
        return ops.rms_norm(x, self.eps) if self.unit_norm else x


__all__ = ["Attention", "Temper"]
