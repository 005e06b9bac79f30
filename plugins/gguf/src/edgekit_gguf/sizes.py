"""The sizes of tensors in a GGUF file, and the types that a fit may choose for them."""

from __future__ import annotations

import attrs

from edgekit.artifact import Layout
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot, fits
from edgekit_gguf.types import tensor_type
from edgekit_gguf.writer import padded, planned

#: Types with large blocks, and types with small blocks for rows that the large ones do not divide.
LARGE = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
SMALL = ("Q2_0", "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@attrs.frozen
class GgufSizes:
    """The sizes of a layout's tensors as a GGUF file; see `edgekit.artifact.Sizes`."""

    layout: Layout

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """Return the K-quants if their blocks divide the rows, else the older types; and F16."""
        large = [find_precision(f"ggml:{kind}") for kind in LARGE]
        small = [find_precision(f"ggml:{kind}") for kind in SMALL]
        blocks = large if all(fits(precision, slot.shape) for precision in large) else small
        return tuple(p for p in (*blocks, find_precision("float:F16")) if fits(p, slot.shape))

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Return the padded bytes of a tensor's blocks; None if GGUF cannot store it so."""
        stored = tensor_type(precision)
        if stored is None or not fits(precision, slot.shape):
            return None
        return padded(slot.tensor.size // stored.block * stored.size)

    def whole(self, plan: Plan) -> int:
        """Return the bytes of the file."""
        header, sizes = planned(self.layout, plan)
        return len(header) + sum(map(padded, sizes))

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return no ties: llama.cpp accepts a different type for each tensor."""
        return ()


__all__ = ["LARGE", "SMALL", "GgufSizes"]
