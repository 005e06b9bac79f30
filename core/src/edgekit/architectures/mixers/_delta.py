"""The gated delta net (Yang et al., arXiv:2412.06464), as Qwen 3 Next and Qwen 3.5 have it.

Queries, keys and values pass through a short convolution with SiLU; queries and keys become unit vectors; a decay and a
step size for each value head come from the input; what the delta rule gives is normalized and gated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Ops, V

#: Epsilon of the unit vectors, as transformers and llama.cpp have it.
_UNIT_EPS = 1e-6


@attrs.frozen
class DeltaNet:
    """A gated delta net.

    Attributes:
        key_heads, value_heads, key_dim, value_dim: sizes of the heads.
        taps: of the convolution.
        eps: epsilon of the norm.
        tiled: whether value head i goes with key head ``i % key_heads`` (Qwen 3.5's GGUF order), else with
            ``i // (value_heads / key_heads)``.
        fused_rates: whether step size and decay come from one matrix, ``ssm_ba``, for each key head those of its value
            heads (Qwen 3 Next).
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    eps: float
    tiled: bool = True
    fused_rates: bool = False

    name: ClassVar[str] = "gated delta net"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values."""
        keys = self.key_heads * self.key_dim
        return keys, keys, self.value_heads * self.value_dim

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        channels, values, heads = sum(self.sizes), self.sizes[2], self.value_heads
        yield from matrix("attn_qkv", (channels, width))
        yield from matrix("attn_gate", (values, width))
        yield "ssm_conv1d.weight", (channels, self.taps)
        if self.fused_rates:
            yield from matrix("ssm_ba", (2 * heads, width))
        else:
            yield from matrix("ssm_beta", (heads, width))
            yield from matrix("ssm_alpha", (heads, width))
        yield "ssm_dt.bias", (heads,)
        yield "ssm_a", (heads,)
        yield "ssm_norm.weight", (self.value_dim,)
        yield from matrix("ssm_out", (width, values))

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block = f"blk.{layer}."
        mixed = ops.convolve(layer, f"{block}ssm_conv1d", ops.product(f"{block}attn_qkv", x))
        queries, keys, values = ops.split(ops.activate("silu", mixed), self.sizes)
        q = ops.scale(ops.unit(ops.heads(queries, self.key_heads), _UNIT_EPS), self.key_dim**-0.5)
        k = ops.unit(ops.heads(keys, self.key_heads), _UNIT_EPS)
        v = ops.heads(values, self.value_heads)
        beta, rate = self._rates(ops, block, x)
        rate = ops.activate("softplus", ops.add(rate, ops.vector(f"{block}ssm_dt.bias")))
        decay = ops.multiply(rate, ops.vector(f"{block}ssm_a"))
        out = ops.delta_rule(layer, q, k, v, decay, ops.activate("sigmoid", beta), self.tiled)
        out = ops.joined(ops.rms_norm(out, self.eps, f"{block}ssm_norm.weight"))
        gate = ops.product(f"{block}attn_gate", x)
        return ops.product(f"{block}ssm_out", ops.gated("silu", gate, out))

    def _rates(self, ops: Ops[V], block: str, x: V) -> tuple[V, V]:
        if self.fused_rates:
            shared = self.value_heads // self.key_heads
            both = ops.heads(ops.product(f"{block}ssm_ba", x), self.key_heads)
            beta, rate = ops.split(both, [shared, shared])
            return ops.joined(beta), ops.joined(rate)
        return ops.product(f"{block}ssm_beta", x), ops.product(f"{block}ssm_alpha", x)


__all__ = ["DeltaNet"]
