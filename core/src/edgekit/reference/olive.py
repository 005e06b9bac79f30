"""Olive's own round-to-nearest grid: groups of 2, 4 or 8 bits along a row, as its PyTorch passes store them.

    part       dtype            shape                          holds
    qweight    uint8            [rows, ceil(cols * b / 8)]     codes, LSB first; unused bits 0
    scales     the source's     [rows, groups]                 s
    qzeros     uint8            [rows, ceil(groups * b / 8)]   z, LSB first, unused bits 0; asymmetric only

    range      lo = min(min, 0)   hi = max(max, 0)    symmetric: hi = max(-lo, hi), and lo = -hi where lo < 0
               lo = -1, hi = 1 where both are 0
    grid       n = 2^b - 1        s = T(T(hi - lo) / n)       z = 2^(b-1) | asymmetric clip(rint(-T(lo / s)), 0, n)
    encode     q = clip(rint(T(T(w / s) + z)), 0, n)          half to even, true division
    decode     T((q - z) * s)

T rounds to the source's type (float32, float16 or bfloat16) after each operation, as PyTorch does on the CPU.
A symmetric group without a negative value keeps lo = 0 beside z = 2^(b-1), so that the codes reach only half way up
to its maximum: a defect of the library, kept here, and covered by the bound.
Where s underflows to 0, Olive refuses a group that holds a zero (0 / 0); here its code is 0. Infinities are outside
the contract: Olive refuses them.

Source: olive-ai 0.13.0, `olive.common.quant.utils.WeightQuantizer`, `olive.common.quant.nn.QuantModule`, run
with torch 2.13.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import extremes, groups, row_chunks
from edgekit.numerics.smallfloats import as_float32, bfloat16_to_float32, float32_to_bfloat16, is_bfloat16
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.typing import F32, F64, U8, Array

traits = Traits(
    proof="exact: olive-ai 0.13.0 on torch 2.13.0",
    bound="half a step; beyond the last level the distance to it; plus rounding in the source's type",
    source_dtypes=True,  # the scales take the type of the source
)

#: type -> (half a unit in the last place: relative, and absolute among subnormals; largest value)
_ROUNDING = {
    "float32": (2.0**-24, 2.0**-150, float(np.finfo(np.float32).max)),
    "float16": (2.0**-11, 2.0**-25, 65504.0),
    "bfloat16": (2.0**-8, 2.0**-134, float(np.finfo(np.float32).max)),
}


def encode(x: Array, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Encode rows [rows, cols] of float32, float16 or bfloat16; importance is ignored."""
    rows, cols = x.shape
    size = precision.block or cols
    qweight = np.empty((rows, -(-cols * precision.bits // 8)), np.uint8)
    scales, zero_points = np.empty((rows, cols // size), x.dtype), np.empty((rows, cols // size), np.uint8)
    with np.errstate(all="ignore"):
        for chunk in row_chunks(rows, cols):
            blocks = groups(as_float32(x[chunk]), size)
            scale, zero_points[chunk] = _fit(blocks, precision, x.dtype)
            codes = _quantize(blocks, scale, zero_points[chunk], precision, x.dtype)
            scales[chunk] = _narrow(scale, x.dtype)
            qweight[chunk] = pack_lsb(codes.reshape(len(codes), -1), precision.bits)
    parts: dict[str, Array] = {"qweight": qweight, "scales": scales}
    return parts if precision.symmetric else {**parts, "qzeros": pack_lsb(zero_points, precision.bits)}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]; the product is rounded to the source's type before it is widened."""
    rows, cols = shape
    scales, zero_points = as_float32(parts["scales"]), _zero_points(parts, precision)
    values = np.empty(shape, np.float32)
    for chunk in row_chunks(rows, cols):
        codes = unpack_lsb(parts["qweight"][chunk], precision.bits, cols)
        levels = groups(codes, precision.block or cols).astype(np.float32)
        levels -= zero_points[chunk, :, None]
        with np.errstate(all="ignore"):
            levels *= scales[chunk, :, None]
            values[chunk] = _rounded(levels, parts["scales"].dtype).reshape(len(codes), -1)
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step, or the distance to the last level if larger, plus the roundings to the source's type."""
    half_ulp, tiny, largest = _ROUNDING[x.dtype.name]
    wide, group = as_float32(x).astype(np.float64), np.arange(x.shape[1]) // (precision.block or x.shape[1])
    step = as_float32(parts["scales"]).astype(np.float64)[:, group]
    zero_point = _zero_points(parts, precision)[:, group]
    top = (1 << precision.bits) - 1
    beyond = np.maximum(wide - (top - zero_point) * step, -1.0 * zero_point * step - wide)
    # The quotient and the product are as large as the value, the sum as large as the codes.
    rounding = half_ulp * (2.0 * np.abs(wide) + (top + 2.0) * step)
    limit = np.maximum(beyond, np.minimum(step / 2, np.abs(wide))) + 1.01 * rounding + 2 * tiny
    return np.where(np.abs(wide) + limit > largest, np.inf, limit)  # the decoded product may overflow


def _fit(blocks: F32, precision: Precision, dtype: np.dtype[Any]) -> tuple[F32, U8]:
    """Scale and zero point [rows, groups] of blocks [rows, groups, size]."""
    top, middle = np.float32((1 << precision.bits) - 1), 1 << (precision.bits - 1)
    lo, hi = extremes(blocks)
    lo, hi = np.minimum(lo, np.float32(0)), np.maximum(hi, np.float32(0))
    if precision.symmetric:
        hi = np.maximum(-lo, hi)
        lo = np.where(lo < 0, -hi, lo)
    zero = (lo == 0) & (hi == 0)
    lo, hi = np.where(zero, np.float32(-1), lo), np.where(zero, np.float32(1), hi)
    extent = _rounded(np.subtract(hi, lo), dtype)
    scale = _rounded(np.divide(extent, top), dtype)
    if precision.symmetric:
        return scale, np.full(scale.shape, middle, np.uint8)
    zero_point = np.rint(-_rounded(np.divide(lo, scale), dtype))
    return scale, np.clip(zero_point, np.float32(0), top).astype(np.uint8)


def _quantize(blocks: F32, scale: F32, zero_point: U8, precision: Precision, dtype: np.dtype[Any]) -> U8:
    """Codes of blocks [rows, groups, size]."""
    q = _rounded(blocks / scale[..., None], dtype)
    q += zero_point[..., None]
    q = _rounded(q, dtype)
    np.rint(q, out=q)
    np.fmax(q, np.float32(0), out=q)  # fmax: NaN, which 0 / 0 is, becomes 0
    np.minimum(q, np.float32((1 << precision.bits) - 1), out=q)
    return q.astype(np.uint8)


def _zero_points(parts: Mapping[str, Array], precision: Precision) -> F32:
    """Zero points [rows, groups]."""
    shape = parts["scales"].shape
    if precision.symmetric:
        return np.full(shape, 1 << (precision.bits - 1), np.float32)
    return unpack_lsb(parts["qzeros"], precision.bits, shape[1]).astype(np.float32)


def _narrow(values: F32, dtype: np.dtype[Any]) -> Array:
    """Round to the source's type."""
    return float32_to_bfloat16(values).view(dtype) if is_bfloat16(dtype) else values.astype(dtype)


def _rounded(values: F32, dtype: np.dtype[Any]) -> F32:
    """Return values rounded to the source's type, as float32."""
    if dtype == np.float32:
        return values
    if is_bfloat16(dtype):
        return bfloat16_to_float32(float32_to_bfloat16(values))
    return values.astype(np.float16).astype(np.float32)


__all__ = ["bound", "decode", "encode", "traits"]
