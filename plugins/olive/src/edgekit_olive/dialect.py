"""The storage of a precision's parts in each dialect of the graph.

MatMulNBits takes the reference's parts unchanged. DequantizeLinear takes codes of 4 and 8 bits with blocks along the
row. Asymmetric codes are the same bytes, as unsigned integers with zero points. Symmetric codes, whose zero point is
the middle for all blocks, are stored as signed integers without: the same bytes with the top bit of each code flipped.
"""

from __future__ import annotations

import attrs
import numpy as np

from edgekit.precision import Precision
from edgekit.recipe import Slot
from edgekit.typing import Array
from edgekit_olive.elements import Stored, has_offsets, is_blockwise, is_hqq, stored_parts

#: The top bit of each code in a byte, by bits.
_TOPS = {4: 0x88, 8: 0x80}


def stored(slot: Slot, precision: Precision, fused: bool) -> dict[str, Stored]:
    """Return the constants of a tensor, by the reference's names of its parts."""
    parts = stored_parts(slot, precision)
    if fused or not is_blockwise(precision):
        return parts
    kind = f"{'' if precision.symmetric else 'U'}INT{precision.bits}"
    codes, scales = parts["B"], parts["scales"]
    parts["B"] = attrs.evolve(codes, name=f"{slot.name}.codes", element=kind, shape=slot.shape)
    if "zero_points" in parts:
        parts["zero_points"] = attrs.evolve(parts["zero_points"], element=kind, shape=scales.shape)
    return parts


def outward(part: Array, key: str, precision: Precision, fused: bool) -> Array:
    """Return a part of the reference as the dialect stores it; `inward` is the same function."""
    if fused or key != "B" or not precision.symmetric or not is_blockwise(precision):
        return part
    flipped: Array = part ^ np.uint8(_TOPS[precision.bits])
    return flipped


inward = outward


def portable_fault(precision: Precision, shape: tuple[int, ...]) -> str:
    """Return why standard operators cannot compute with a tensor in a precision; empty if they can."""
    if not is_blockwise(precision):
        return "stacked experts need float weights" if len(shape) > 2 and precision.convention != "float" else ""
    assert precision.block is not None
    if is_hqq(precision):
        return "DequantizeLinear takes no zero points in floats"
    if has_offsets(precision):
        return "DequantizeLinear takes no offsets"
    if precision.bits == 2:
        return "opset 21 has no type of 2 bits"
    if len(shape) > 2:
        return "stacked experts need float weights"
    if shape[-1] % precision.block:
        return f"DequantizeLinear needs rows that blocks of {precision.block} divide"
    if not precision.symmetric and precision.bits == 4 and shape[-1] // precision.block % 2:
        return "the zero points of a row need whole bytes, an even number of blocks"
    return ""


__all__ = ["inward", "outward", "portable_fault", "stored"]
