"""fp4, fp8, mxfp4, mxfp8, nvfp4: small floats with a scale.

    fp4, nvfp4   s = max|x| / 6, with a lower limit (see `_scales`)     code = e2m1(x / s)
    fp8          s = max|x| / 448, with a lower limit                   code = e4m3(float16(x / s))
    mxfp4        r = as fp4,  s = 2^ceil(log2 r)                        code = e2m1(x / s)
    mxfp8        r = as fp8,  s = 2^ceil(log2 r)                        code = e4m3(float16(x / s))

e2m1 and e4m3 round half to even and keep the sign of zero; e4m3 is rounded twice, as OpenVINO converts it. nvfp4's
codes are computed with the float32 s, not with the stored scale.

NNCF's log2 is inexact, and this module reproduces it:

    below 10,000 elements   float32(log2 r)
    from 10,000 on          float32(log r) * float32(1 / log 2)

Both are rounded before ceil. So an r that is a few units in the last place above a power of two gets that power, and
x / s exceeds 6 (448) by as many units; such codes saturate. In large tensors the product is above the integer for
r = 2^-13, 2^-15, 2^-26, 2^-27, 2^-30 and 2^-31 (and for up to eight units below 2^-27 and 2^-31): their scale is
doubled, which loses one bit. It is reproduced because the bytes must be NNCF's; decoding is not affected.

Sources: OCP Microscaling Formats (MX) v1.0 for e2m1 and e8m0; OCP 8-bit Floating Point v1.0 for e4m3;
nncf 3.4.0, `calculate_float_quantization_params`, `_build_float_quantization_model`.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.blocks import reduce_groups
from edgekit.numerics.smallfloats import E2M1, E4M3, float32_to_float8_e4m3fn
from edgekit.precision import Precision
from edgekit.reference.openvino._scales import LARGE, above_zero
from edgekit.typing import F32, I32, U8

_INVERSE_LN2 = np.float32(1.442695)  # float32(1 / float32(log 2)): OpenVINO converts the division to a product


def fit(groups: F32, precision: Precision, size: int) -> tuple[F32, F32]:
    """Return float32 scales [groups, 1] before they are stored, and zeros as zero points."""
    largest = float(np.nanmax(levels(precision)))
    scale = above_zero(reduce_groups(np.maximum, np.abs(groups)), largest, size)
    if precision.scale_dtype == "float8_e8m0fnu":
        scale = np.ldexp(np.float32(1), _exponent(scale, size))
    return scale, np.zeros_like(scale)


def quantize(groups: F32, scale: F32, zero_point: F32, precision: Precision) -> U8:
    """Return the codes of e2m1 or e4m3, uint8 in the shape of groups."""
    ratio = groups / scale
    if precision.bits == 4:
        return _e2m1(ratio)
    return float32_to_float8_e4m3fn(_through_float16(ratio))


def levels(precision: Precision) -> F32:
    """Return the values of e2m1 [16] or e4m3 [256]; codes 127 and 255 of e4m3 are NaN and are never encoded."""
    return E4M3 if precision.bits == 8 else np.concatenate([E2M1, -E2M1])


def _exponent(scale: F32, size: int) -> I32:
    """Return ``ceil(log2(scale))`` with NNCF's roundings: each logarithm is the float32 nearest to the exact one."""
    wide = scale.astype(np.float64)
    large = size >= LARGE
    log2: F32 = np.log(wide).astype(np.float32) * _INVERSE_LN2 if large else np.log2(wide).astype(np.float32)
    return np.ceil(log2).astype(np.int32)


def _e2m1(x: F32) -> U8:
    """Return float4_e2m1fn codes: a magnitude's code is the number of midpoints below it; ties go to the even code."""
    magnitude = np.abs(x)
    codes = np.signbit(x).view(np.uint8) << np.uint8(3)
    beyond = np.empty(x.shape, np.bool_)
    for lower in range(7):
        midpoint = (E2M1[lower] + E2M1[lower + 1]) / np.float32(2)
        compare = np.greater_equal if lower % 2 else np.greater
        codes += compare(magnitude, midpoint, out=beyond).view(np.uint8)
    return codes


def _through_float16(x: F32) -> F32:
    """Return x rounded to float16, ties to even, for |x| in float16's normal range; smaller values become code 0.

    Rounds off the lowest 13 of 23 mantissa bits by integer arithmetic, since numpy's conversion takes four times as
    long.
    """
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    odd += np.uint32(0xFFF)
    odd += bits
    odd &= np.uint32(0xFFFFE000)
    return odd.view(np.float32)


__all__ = ["fit", "levels", "quantize"]
