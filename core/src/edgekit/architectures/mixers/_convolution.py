"""The gated short convolution of LFM2: ``out = W_out (c * conv(b * x))`` with b, c, x from one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Ops, V


@attrs.frozen
class ShortConvolution:
    """A gated short convolution.

    Attributes:
        width: of the model.
        taps: of the convolution.
        bias: whether its matrices and the convolution have biases.
    """

    width: int
    taps: int
    bias: bool = False

    name: ClassVar[str] = "short convolution"

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        yield from matrix("shortconv.in_proj", (3 * width, width), self.bias)
        yield from matrix("shortconv.conv", (width, self.taps), self.bias)
        yield from matrix("shortconv.out_proj", (width, width), self.bias)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block = f"blk.{layer}.shortconv."
        before, after, inner = ops.split(ops.product(f"{block}in_proj", x), [self.width] * 3)
        mixed = ops.convolve(layer, f"{block}conv", ops.multiply(before, inner))
        return ops.product(f"{block}out_proj", ops.multiply(after, mixed))


__all__ = ["ShortConvolution"]
