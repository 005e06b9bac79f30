"""Mamba 2 (Dao and Gu, arXiv:2405.21060), as Granite 4 and Nemotron-H have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Ops, V


@attrs.frozen
class Mamba2:
    """A selective state space.

    Attributes:
        heads, head_dim: sizes; heads * head_dim is the inner width.
        groups: how many inputs B and outputs C there are; heads / groups heads share one.
        state: elements of the state for each element of a head.
        taps: of the convolution.
        eps: epsilon of the norm.
        bias: whether the matrices have biases.
        conv_bias: whether the convolution has one.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    taps: int
    eps: float
    bias: bool = False
    conv_bias: bool = True

    name: ClassVar[str] = "Mamba 2"

    @property
    def inner(self) -> int:
        """The inner width."""
        return self.heads * self.head_dim

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        shared = self.groups * self.state
        yield from matrix("ssm_in", (2 * self.inner + 2 * shared + self.heads, width), self.bias)
        yield from matrix("ssm_conv1d", (self.inner + 2 * shared, self.taps), self.conv_bias)
        yield "ssm_dt.bias", (self.heads,)
        yield "ssm_a", (self.heads, 1)
        yield "ssm_d", (self.heads, 1)
        yield "ssm_norm.weight", (self.groups, self.inner // self.groups)
        yield from matrix("ssm_out", (width, self.inner), self.bias)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block, shared = f"blk.{layer}.", self.groups * self.state
        sizes = [self.inner, self.inner + 2 * shared, self.heads]
        gate, mixed, step = ops.split(ops.product(f"{block}ssm_in", x), sizes)
        mixed = ops.activate("silu", ops.convolve(layer, f"{block}ssm_conv1d", mixed))
        values, inputs, outputs = ops.split(mixed, [self.inner, shared, shared])
        step = ops.activate("softplus", ops.add(step, ops.vector(f"{block}ssm_dt.bias")))
        out = ops.joined(
            ops.scan(
                layer,
                ops.heads(values, self.heads),
                step,
                f"{block}ssm_a",
                f"{block}ssm_d",
                ops.heads(inputs, self.groups),
                ops.heads(outputs, self.groups),
            )
        )
        # The gate comes before the norm, which is of each group.
        gated = ops.heads(ops.gated("silu", gate, out), self.groups)
        normed = ops.group_norm(gated, self.eps, f"{block}ssm_norm.weight")
        return ops.product(f"{block}ssm_out", ops.joined(normed))


__all__ = ["Mamba2"]
