"""Formats of small floats under a scale: elements e2m1 (4 bits) or e4m3 (8 bits), and the types of their scales.

scale      values                       stored by
e8m0       2^-127 … 2^127               ggml MXFP4; mxfp4 and mxfp8 of MLX and OpenVINO
e4m3       0, 2^-9 … 448                ggml NVFP4; nvfp4 of MLX
float16                                 fp4 and fp8 of OpenVINO; the product of its nvfp4's scales
float32                                 the scales' product in MLX's nvfp4 with a scale for the tensor; packed fp4, fp8
"""

from __future__ import annotations

from typing import Literal

import attrs
import numpy as np

from edgekit.bridges._lattice import Lattice, Minifloats
from edgekit.bridges._planes import join, split
from edgekit.errors import InexactError
from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.smallfloats import E2M1, E4M3, float8_e8m0fnu_to_float32, float32_to_float8_e4m3fn
from edgekit.precision import Precision
from edgekit.reference import Parts, mlx
from edgekit.reference.ggml import nvfp4
from edgekit.reference.openvino import _scales
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, U8, U32, Array

#: Types of scales; every later one can represent all values of the earlier ones.
Scale = Literal["e8m0", "e4m3", "float16", "float32"]


@attrs.frozen
class Elements:
    """Properties of a format of small floats.

    Attributes:
        bits: 4 for e2m1, 8 for e4m3.
        group: columns that share a scale; 0 for a whole row.
        scale: type of the scales.
        written: False if writing the format requires a search for a second scale.
    """

    bits: int
    group: int
    scale: Scale
    written: bool = True


_HOLDS: dict[tuple[str, str], tuple[Scale, bool]] = {
    ("ggml", "MXFP4"): ("e8m0", True),
    ("ggml", "NVFP4"): ("e4m3", True),
    ("mlx", "mxfp4"): ("e8m0", True),
    ("mlx", "mxfp8"): ("e8m0", True),
    ("mlx", "nvfp4"): ("e4m3", True),
    ("openvino", "mxfp4"): ("e8m0", True),
    ("openvino", "mxfp8"): ("e8m0", True),
    ("openvino", "nvfp4"): ("float16", False),
    ("openvino", "fp4"): ("float16", True),
    ("openvino", "fp8"): ("float16", True),
    ("packed", "fp4"): ("float32", False),
    ("packed", "fp8"): ("float32", False),
}
#: The e4m3 pattern of each e2m1 code, and the reverse: 255 if there is none.
_WIDER = float32_to_float8_e4m3fn(np.concatenate([E2M1, -E2M1]))
_NARROWER = np.full(256, 255, np.uint8)
_NARROWER[_WIDER] = np.arange(16)


def holds(precision: Precision) -> Elements | None:
    """Return a format's properties; None if it does not store small floats with scales."""
    elements = _HOLDS.get((precision.convention, precision.kind))
    if elements is None:
        return None
    group = 16 if precision.kind == "NVFP4" else precision.block or 0
    if precision.convention == "mlx" and precision.whole_tensor:
        return Elements(precision.bits, group, "float32", written=False)
    return Elements(precision.bits, group, *elements)


def read(tensor: QuantizedTensor) -> Minifloats:
    """Return the elements and scales of a tensor."""
    precision, parts = tensor.precision, tensor.parts
    rows, cols, bits = tensor.rows, tensor.shape[-1], tensor.precision.bits
    group = 16 if precision.kind == "NVFP4" else precision.block or cols
    if precision.convention == "ggml":
        codes, scale = _of_blocks(parts["blocks"], precision.kind)
    elif precision.convention == "mlx":
        codes = unpack_lsb(np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8), bits, cols)
        scale = mlx.float_scale(parts, precision)
    elif precision.convention == "packed":
        codes, scale = unpack_lsb(parts["codes"], bits, cols), parts["scale"]
    else:
        codes = unpack_lsb(parts["codes"].view(np.uint8).reshape(-1), bits, rows * cols)
        scale = _scales.widen(parts, precision)
    return Minifloats(codes.reshape(rows, cols), scale.reshape(rows, -1), group, bits)


def _of_blocks(blocks: U8, kind: str) -> tuple[U8, F32]:
    flat = np.ascontiguousarray(blocks)
    if kind == "MXFP4":
        each = flat.reshape(-1, 17)
        return split(np.ascontiguousarray(each[:, 1:]), 4), float8_e8m0fnu_to_float32(each[:, 0])
    each = flat.reshape(-1, 36)
    return split(np.ascontiguousarray(each[:, 4:]).reshape(-1, 8), 4), nvfp4.SCALES[each[:, :4]]


def as_lattice(values: Minifloats) -> Lattice:
    """Convert e2m1 elements to a lattice of multiples of one half."""
    if values.bits != 4:
        raise InexactError("elements of e4m3 are not a lattice")
    codes = (np.concatenate([E2M1, -E2M1]) * 2 + 16).astype(np.uint8)[values.codes]
    zero = np.full(values.scale.shape, 16, np.int16)
    return Lattice(codes, values.scale / np.float32(2), values.group, zero=zero)


def write(values: Minifloats, precision: Precision) -> Parts:
    """Return the parts in which `precision` stores the small floats.

    Raises:
        InexactError: the precision cannot represent an element or a scale; names it.
    """
    wants = holds(precision)
    if wants is None or not wants.written:
        raise InexactError(f"{precision} cannot store small floats and their scales unchanged")
    codes, scale = _elements(values, wants.bits), _regrouped(values, wants.group or values.codes.shape[1])
    stored = _STORED[wants.scale](scale)
    if precision.convention == "ggml":
        return {"blocks": _blocks(codes, stored, precision.kind).reshape(len(codes), -1)}
    if precision.convention == "mlx":
        return {"weight": _words(codes, wants.bits), "scales": stored}
    aligned = codes.shape[1] * wants.bits % 8 == 0
    packed = pack_lsb(codes if aligned else codes.reshape(-1), wants.bits)
    return {"codes": packed, "scale": stored if precision.granularity == "channel" else stored[..., None]}


def packed(tensor: QuantizedTensor, codes: U8) -> Parts:
    """The part of a tensor that holds its codes, with other patterns [rows, cols] in their place."""
    precision = tensor.precision
    if precision.convention == "ggml":
        blocks = np.ascontiguousarray(tensor.parts["blocks"])
        size, scales = (17, 1) if precision.kind == "MXFP4" else (36, 4)
        return {"blocks": _blocks(codes, blocks.reshape(-1, size)[:, :scales], precision.kind).reshape(blocks.shape)}
    if precision.convention == "mlx":
        return {"weight": _words(codes, precision.bits)}
    aligned = codes.shape[1] * precision.bits % 8 == 0
    stored = pack_lsb(codes if aligned else codes.reshape(-1), precision.bits)
    return {"codes": stored.view(tensor.parts["codes"].dtype)}


def _words(codes: U8, bits: int) -> U32:
    return np.ascontiguousarray(pack_lsb(codes, bits)).view("<u4").astype(np.uint32, copy=False)


def _blocks(codes: U8, stored: U8, kind: str) -> U8:
    half, scales = (16, 1) if kind == "MXFP4" else (8, 4)
    packed = join(codes.reshape(-1, 2, half), 4).reshape(-1, half * scales)
    return np.concatenate([stored.reshape(-1, scales), packed], axis=1)


def _elements(values: Minifloats, bits: int) -> U8:
    if values.bits == bits:
        return values.codes
    if bits == 8:
        return _WIDER[values.codes]
    codes = _NARROWER[values.codes]
    if (codes == 255).any():
        raise InexactError("an element is not an e2m1 value")
    return codes


def _regrouped(values: Minifloats, group: int) -> F32:
    zero = np.zeros(values.scale.shape, np.int16)
    fitted = Lattice(values.codes, values.scale, values.group, zero=zero).regrouped(group)
    if fitted is None:
        raise InexactError(f"groups of {values.group} have scales of their own, the target has one for {group}")
    return np.ascontiguousarray(fitted.scale)


def _e8m0(scale: F32) -> Array:
    mantissa, exponent = np.frexp(scale)
    if (mantissa != 0.5).any():
        raise InexactError("a scale is not a power of two")
    return (exponent + 126).astype(np.uint8)


def _e4m3(scale: F32) -> Array:
    stored = float32_to_float8_e4m3fn(scale)
    if (E4M3[stored] != scale).any() or (scale < 0).any():
        raise InexactError("a scale is not an e4m3 value")
    return stored


def _float16(scale: F32) -> Array:
    with np.errstate(over="ignore"):
        stored = scale.astype(np.float16)
    if (stored != scale).any():
        raise InexactError("a scale is not a float16 value")
    return stored


_STORED = {"e8m0": _e8m0, "e4m3": _e4m3, "float16": _float16}
