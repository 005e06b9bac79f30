"""The grid of a block in MatMulNBits and QDQ int4, and the bound on its error.

    symmetric     m = max where |max| > |min|, else min          s = -m / 2^(b-1)  (signed)      z = 2^(b-1)
    asymmetric    lo = min(min, 0)   hi = max(max, 0)            s = (hi - lo) / (2^b - 1)
                  z = roundf(clip(0 - lo / s, 0, 2^b - 1))       z = 0 where s = 0
    both          r = 1 / t, with t the scale as stored in float32 or float16;                   0 where t = 0

All in float32; z is computed from s before s is rounded for storage. A bfloat16 weight is quantized in float32, and its
scale is rounded to bfloat16 afterwards, so that t = s for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgekit.numerics.blocks import extremes
from edgekit.numerics.smallfloats import as_float32, float32_to_bfloat16, is_bfloat16, to_float32
from edgekit.precision import Precision
from edgekit.typing import F32, F64, Array

#: The largest float32 below one half: truncating v + HALF is C's ``roundf`` for v >= 0 (see `_rounding`).
HALF = np.float32(0.49999997)
_LARGEST = float(np.finfo(np.float32).max)
# Rounding in float32, in steps, of the reciprocal, the product, the sum and the decoded product: at most 256 levels,
# and a reciprocal among the subnormals keeps 2^-22.
_SLOP = 256 * 2.0**-20
# A bfloat16 scale has a relative error of 2^-8, which counts twice, since the range of the codes has it too.
_BFLOAT16 = 2.0**-7 * 1.02
# Below this a float32 scale has no finite reciprocal.
_INVERTIBLE = 2.0**-128


class Grid(NamedTuple):
    """The grids of blocks [..., width]: the stored scale, 1 / scale in float32, and the zero point, each [...]."""

    scale: Array
    reciprocal: F32
    zero_point: F32


def fit(blocks: F32, precision: Precision, dtype: np.dtype[Any]) -> Grid:
    """Return the grids of blocks [..., width], with the scale stored as `dtype`."""
    lo, hi = extremes(blocks)
    if precision.symmetric:
        scale = _signed_edge(blocks, lo, hi) / np.float32(-middle(precision))
        zero_point = np.full(scale.shape, middle(precision), np.float32)
    else:
        lo, hi = np.minimum(lo, np.float32(0)), np.maximum(hi, np.float32(0))
        scale = np.abs(hi - lo) / np.float32(top(precision))  # abs: 0 - 0 may be -0 in one order of reduction
        exact = np.where(scale != 0, np.float32(0) - lo / scale, np.float32(0))
        zero_point = np.trunc(_clip(exact, precision) + HALF)
    stored = _store(scale, dtype)
    step = scale if is_bfloat16(dtype) else to_float32(stored)
    return Grid(stored, np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0), zero_point)


def top(precision: Precision) -> int:
    """Return the largest code."""
    return (1 << precision.bits) - 1


def middle(precision: Precision) -> int:
    """Return the code of 0 in a symmetric grid."""
    return 1 << (precision.bits - 1)


def error_bound(x: Array, scale: Array, zero_point: Array, precision: Precision) -> F64:
    """Return a bound on |x - decoded|; the stored `scale` and `zero_point` are broadcast against x [rows, cols]."""
    wide, step = as_float32(x).astype(np.float64), as_float32(scale).astype(np.float64)
    ends = -1.0 * zero_point * step, (top(precision) - 1.0 * zero_point) * step
    beyond = np.maximum(wide - np.maximum(*ends), np.minimum(*ends) - wide)
    size = np.abs(step)
    limit = np.maximum(beyond, np.minimum(size / 2, np.abs(wide))) + _SLOP * size + 2.0**-149
    if is_bfloat16(scale.dtype):
        limit += _BFLOAT16 * (np.abs(wide) + size) + top(precision) * 2.0**-133
    # Without a finite reciprocal the codes are the ends, or 0, so that any level may result.
    limit = np.where(size < _INVERTIBLE * 1.01, np.abs(wide) + top(precision) * size, limit)
    return np.where(np.abs(wide) + limit > _LARGEST, np.inf, limit)  # the decoded product may overflow


def _clip(values: F32, precision: Precision) -> F32:
    """Clip to the range of codes; NaN, the result of 0 * infinity, becomes 0."""
    np.fmax(values, np.float32(0), out=values)
    return np.minimum(values, np.float32(top(precision)), out=values)


def _signed_edge(blocks: F32, lo: F32, hi: F32) -> F32:
    """Return the signed value of largest magnitude; for zeros the first one, whose sign the scale keeps."""
    edge = np.where(np.abs(hi) > np.abs(lo), hi, lo)
    return np.where(edge == 0, blocks[..., 0], edge)


def _store(scale: F32, dtype: np.dtype[Any]) -> Array:
    return float32_to_bfloat16(scale).view(dtype) if is_bfloat16(dtype) else scale.astype(dtype)
