"""What tensors take in a GGUF file, and which types are worth trying for them."""

from __future__ import annotations

import attrs

from edgekit.artifact import Layout
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot, fits
from edgekit_gguf.types import tensor_type
from edgekit_gguf.writer import padded, planned

#: Types of large blocks, and of small ones for rows that the large do not divide.
LARGE = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
SMALL = ("Q2_0", "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@attrs.frozen
class GgufSizes:
    """Sizes in the file of a layout; see `edgekit.artifact.Sizes`."""

    layout: Layout

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """K-quants where their blocks divide the rows, else the older types; and F16."""
        large = [find_precision(f"ggml:{kind}") for kind in LARGE]
        small = [find_precision(f"ggml:{kind}") for kind in SMALL]
        blocks = large if all(fits(precision, slot.shape) for precision in large) else small
        return tuple(p for p in (*blocks, find_precision("float:F16")) if fits(p, slot.shape))

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Bytes of the blocks, with padding."""
        stored = tensor_type(precision)
        if stored is None or not fits(precision, slot.shape):
            return None
        return padded(slot.tensor.size // stored.block * stored.size)

    def whole(self, plan: Plan) -> int:
        """Bytes of the file."""
        header, sizes = planned(self.layout, plan)
        return len(header) + sum(map(padded, sizes))

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """None: llama.cpp takes a type of its own for each tensor."""
        return ()


__all__ = ["LARGE", "SMALL", "GgufSizes"]
