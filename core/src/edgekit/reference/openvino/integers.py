"""int8, int4, int3, int2: evenly spaced levels.

    symmetric    lo = min(x), hi = max(x)
                 s = |lo| / 2^(b-1) if |lo| >= hi, else -hi / 2^(b-1)      a signed scale: the end with the
                                                                           larger magnitude gets code -2^(b-1)
                 s = EPS where |s| < EPS
                 q = clip(rint(x / s), -2^(b-1), 2^(b-1) - 1)
                 stored: int8, int4 in two's complement; int3, int2 as q + 2^(b-1), zero point 2^(b-1)
    asymmetric   lo = min(x, 0), hi = max(x, 0), n = 2^b - 1
                 s = (hi - lo) / n;  s = EPS where s < EPS
                 zp = clip(-rint(lo / s), 0, n)      q = clip(rint(x / s + zp), 0, n)

rint rounds half to even. Note that a constant positive group has lo = hi and so a positive scale, and its codes
saturate at 2^(b-1) - 1; and that in asymmetric formats the sum x / s + zp is rounded to float32 before rint.

Source: nncf 3.4.0, `calculate_integer_quantization_params`, `_calculate_signed_scale`,
`_calculate_integer_quantized_weight`.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.blocks import reduce_groups
from edgekit.precision import Precision
from edgekit.reference.openvino._scales import EPS
from edgekit.typing import F32, U8


def fit(groups: F32, precision: Precision, size: int) -> tuple[F32, F32]:
    """Return float32 scales and zero points [groups, 1] of groups; `size` is ignored."""
    lo, hi = reduce_groups(np.minimum, groups), reduce_groups(np.maximum, groups)
    if precision.symmetric:
        scale = np.where(np.abs(lo) >= hi, np.abs(lo), -hi) / np.float32(1 << (precision.bits - 1))
        return np.where(np.abs(scale) < EPS, EPS, scale), np.zeros_like(scale)
    top = np.float32((1 << precision.bits) - 1)
    lo, hi = np.minimum(lo, np.float32(0)), np.maximum(hi, np.float32(0))
    wide: F32 = np.maximum((hi - lo) / top, EPS)
    return wide, np.clip(-np.rint(lo / wide), np.float32(0), top)


def quantize(groups: F32, scale: F32, zero_point: F32, precision: Precision) -> U8:
    """Return the codes: two's complement, or unsigned for int3, int2 and the asymmetric formats."""
    half = 1 << (precision.bits - 1)
    q = groups / scale
    if not precision.symmetric:
        q += zero_point
    np.rint(q, out=q)
    if not precision.symmetric:
        return np.clip(q, np.float32(0), np.float32(2 * half - 1), out=q).astype(np.uint8)
    codes = np.clip(q, np.float32(-half), np.float32(half - 1), out=q).astype(np.int8).view(np.uint8)
    if precision.kind in ("int3", "int2"):
        codes += np.uint8(half)  # wraps around: -half becomes 0
    elif precision.kind == "int4":
        codes &= np.uint8(15)
    return codes


def levels(precision: Precision) -> F32:
    """Return the level of each code, float32 [2**bits], with the fixed zero point of int3 and int2 subtracted."""
    half = 1 << (precision.bits - 1)
    patterns = np.arange(2 * half, dtype=np.float32)
    if not precision.symmetric:
        return patterns
    return patterns - half if precision.kind in ("int3", "int2") else np.roll(patterns - half, half)


__all__ = ["fit", "levels", "quantize"]
