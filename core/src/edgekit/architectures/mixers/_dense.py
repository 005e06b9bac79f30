"""Feed-forward networks: with a gate (SwiGLU, GeGLU), and plain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Activation, Gate, Ops, V


@attrs.frozen
class Gated:
    """A feed-forward network with a gate.

    Attributes:
        ffn: its inner width.
        gate: how gate and up projection become one.
        fused: whether the two are one matrix, ``ffn_up``, the gate's rows first.
        bias: whether its matrices have biases.
        suffix: of the matrices' names (``_shexp``: an expert that all tokens use).
    """

    ffn: int
    gate: Gate = "silu"
    fused: bool = False
    bias: bool = False
    suffix: str = ""

    name: ClassVar[str] = "feed-forward"

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        if self.fused:
            yield from matrix(f"ffn_up{self.suffix}", (2 * self.ffn, width), self.bias)
        else:
            yield from matrix(f"ffn_gate{self.suffix}", (self.ffn, width), self.bias)
            yield from matrix(f"ffn_up{self.suffix}", (self.ffn, width), self.bias)
        yield from matrix(f"ffn_down{self.suffix}", (width, self.ffn), self.bias)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block = f"blk.{layer}."
        if self.fused:
            gate, up = ops.split(ops.product(f"{block}ffn_up{self.suffix}", x), [self.ffn, self.ffn])
        else:
            gate = ops.product(f"{block}ffn_gate{self.suffix}", x)
            up = ops.product(f"{block}ffn_up{self.suffix}", x)
        return ops.product(f"{block}ffn_down{self.suffix}", ops.gated(self.gate, gate, up))


@attrs.frozen
class Plain:
    """A feed-forward network without a gate: up, activation, down."""

    ffn: int
    activation: Activation
    bias: bool = False
    suffix: str = ""

    name: ClassVar[str] = "plain feed-forward"

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        yield from matrix(f"ffn_up{self.suffix}", (self.ffn, width), self.bias)
        yield from matrix(f"ffn_down{self.suffix}", (width, self.ffn), self.bias)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        up = ops.product(f"blk.{layer}.ffn_up{self.suffix}", x)
        return ops.product(f"blk.{layer}.ffn_down{self.suffix}", ops.activate(self.activation, up))


__all__ = ["Gated", "Plain"]
