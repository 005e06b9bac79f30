"""Element types of the IR, and the constants that store a tensor in one of edgekit's precisions.

    precision          codes            scale     zero point        global scale
    int8-sym           i8               f16       -                 -
    int8-asym          u8               f16       u8                -
    int4-sym, -asym    i4, u4           f16       -, u4             -
    int3-sym, int2-sym u3, u2           f16       i8, one for all   -
    nf4, fp4, fp8      nf4, f4e2m1, f8e4m3   f16  -                 -
    cb4                u4, indices      f16       -                 -      and sixteen levels in f8e4m3
    mxfp4, mxfp8       f4e2m1, f8e4m3   f8e8m0    -                 -
    nvfp4              f4e2m1           f8e4m3    -                 f32

Codes are [rows, cols] with one scale a row [rows, 1], or [rows, groups, size] with scales [rows, groups, 1]. The bytes
are those of the reference's parts: see `edgekit.reference.openvino`. Constants have the names that NNCF gives them.

Source: openvino 2026.4.1, `element_type.hpp`; nncf 3.4.0, `_create_compression_subgraph`, as IRs show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from edgekit.precision import Precision

#: The IR's name of an element type -> bits, and edgekit's name if elements take whole bytes.
ELEMENTS: Mapping[str, tuple[int, str]] = {
    "f64": (64, "float64"),
    "f32": (32, "float32"),
    "f16": (16, "float16"),
    "bf16": (16, "bfloat16"),
    "f8e4m3": (8, "float8_e4m3fn"),
    "f8e5m2": (8, "float8_e5m2"),
    "f8e8m0": (8, "float8_e8m0fnu"),
    "i64": (64, "int64"),
    "i32": (32, "int32"),
    "i16": (16, "int16"),
    "i8": (8, "int8"),
    "u64": (64, "uint64"),
    "u32": (32, "uint32"),
    "u16": (16, "uint16"),
    "u8": (8, "uint8"),
    "boolean": (8, "bool"),
    "i4": (4, ""),
    "u4": (4, ""),
    "nf4": (4, ""),
    "f4e2m1": (4, ""),
    "u6": (6, ""),
    "u3": (3, ""),
    "u2": (2, ""),
    "u1": (1, ""),
}
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_CODES = {
    "int8": ("i8", "u8"),
    "int4": ("i4", "u4"),
    "int3": ("u3", ""),
    "int2": ("u2", ""),
    **dict.fromkeys(("fp4", "mxfp4", "nvfp4"), ("f4e2m1", "")),
    **dict.fromkeys(("fp8", "mxfp8"), ("f8e4m3", "")),
    "nf4": ("nf4", ""),
    "cb4": ("u4", ""),
}
_SCALES = {"float16": "f16", "float8_e8m0fnu": "f8e8m0", "float8_e4m3fn": "f8e4m3"}
#: Suffix of the constant with cb4's codes in NNCF's naming; the constant without it holds the levels.
CODEBOOK_SUFFIX = "_nncf_codebook_idxs"


@attrs.frozen
class Stored:
    """A constant to store.

    Attributes:
        name: name of its layer.
        element: the IR's name of its element type.
        shape: outermost dimension first.
    """

    name: str
    element: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in the .bin."""
        return constant_bytes(self.element, self.shape)


def constant_bytes(element: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a constant; codes of less than a byte are packed, six-bit and three-bit ones in groups."""
    bits, count = ELEMENTS[element][0], math.prod(shape)
    if bits in (3, 6):  # the number of codes that fill 3 bytes exactly
        return -(-count * bits // 24) * 3
    return -(-count * bits // 8)


def stored_parts(name: str, precision: Precision, shape: tuple[int, ...]) -> dict[str, Stored]:
    """Return the constants of a tensor by the reference's names of its parts; a float tensor has one, ``values``."""
    if precision.convention == "float":
        return {"values": Stored(name, FLOATS[precision.kind], shape)}
    rows, group = shape[:-1], precision.block
    codes = (*rows, shape[-1] // group, group) if group else shape
    scale = (*codes[:-1], 1)
    signed, unsigned = _CODES[precision.kind]
    first = f"{name}{CODEBOOK_SUFFIX}" if precision.kind == "cb4" else name
    parts = {"codes": Stored(first, signed if precision.symmetric else unsigned, codes)}
    parts["scale"] = Stored(f"{name}/scale", _SCALES[precision.scale_dtype or ""], scale)
    if precision.kind in ("int3", "int2"):
        parts["zero_point"] = Stored(f"{name}/zero_point", "i8", ())
    elif not precision.symmetric:
        parts["zero_point"] = Stored(f"{name}/zero_point", unsigned, scale)
    if precision.kind == "nvfp4":
        parts["global_scale"] = Stored(f"{name}/second_order_scale", "f32", (1, 1, 1))
    return parts


def storable(precision: Precision) -> bool:
    """Return whether an IR can store a precision."""
    return precision.convention == "openvino" or (precision.convention == "float" and precision.kind in FLOATS)


def precision_name(
    element: str, group: int | None, scale: str, zero: str | None, levels: bool, shared: bool
) -> str | None:
    """Return the precision of constants that dequantize a weight; None if edgekit does not have it.

    Args:
        element: element type of the codes.
        group: number of codes that share a scale; None for a row.
        scale: element type of the scale.
        zero: element type of the zero point, if there is one.
        levels: whether the codes are indices of cb4's levels.
        shared: whether the scales are multiplied by a global scale.
    """
    where = f"-g{group}" if group else "-channel"
    match (element, scale, zero):
        case ("u4", "f16", None) if levels:
            return f"openvino:cb4{where}"
        case ("i8", "f16", None) | ("i4", "f16", None):
            return f"openvino:int{element[1]}-sym{where}"
        case ("u8", "f16", "u8") if group is None:
            return "openvino:int8-asym-channel"
        case ("u4", "f16", "u4"):
            return f"openvino:int4-asym{where}"
        case ("u3", "f16", "i8") | ("u2", "f16", "i8"):
            return f"openvino:int{element[1]}-sym{where}"
        case ("nf4", "f16", None):
            return f"openvino:nf4{where}"
        case ("f4e2m1", "f16", None):
            return f"openvino:fp4{where}"
        case ("f8e4m3", "f16", None):
            return f"openvino:fp8{where}"
        case ("f4e2m1", "f8e8m0", None) if group == 32:
            return "openvino:mxfp4"
        case ("f8e4m3", "f8e8m0", None) if group == 32:
            return "openvino:mxfp8"
        case ("f4e2m1", "f8e4m3", None) if group == 16 and shared:
            return "openvino:nvfp4"
    return None


__all__ = [
    "CODEBOOK_SUFFIX",
    "ELEMENTS",
    "FLOATS",
    "Stored",
    "constant_bytes",
    "precision_name",
    "storable",
    "stored_parts",
]
