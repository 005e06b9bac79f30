"""The 4-bit floats of MXFP4 and NVFP4, and the search for the nearest one.

    code     0  1    2  3    4  5  6  7     8-15
    value    0  0.5  1  1.5  2  3  4  6     the same, negative

ggml keeps the values doubled and scales halved, and takes the first code with the smallest ``|value * d - x|``:
ties go to the smaller magnitude, and code 8 is never used. Comparing abs(x) with the midpoints gives the same code
unless the subtraction cannot distinguish neighbours: if x is infinite or at least 2**20 times the scale, or if
``value * d`` overflows. Such elements are computed as written.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._layout import lanes, spread
from edgekit.typing import F32, F64, U8, Bools

#: The sixteen values, doubled.
VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
_MIDPOINTS = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)
_SIGN_TO_BIT_3 = np.uint32(28)
_LARGEST = float(np.finfo(np.float32).max)


def nearest_codes(x: F32, d: F32, tame: Bools) -> U8:
    """Return the code of each element under the scale of its block, in lanes.

    Args:
        x: blocks [blocks, n].
        d: half the scale of each block [blocks]; if it is zero, every code is 0.
        tame: mask of the blocks in which comparing with midpoints is exact.
    """
    v = lanes(x)
    negative = ((v.view(np.uint32) >> _SIGN_TO_BIT_3) & np.uint32(8)).astype(np.uint8)
    np.abs(v, out=v)
    reach = spread(np.where(d > 0, d, np.float32(np.inf)))
    codes = np.zeros(v.shape, np.uint8)
    for midpoint in _MIDPOINTS:
        codes += v > reach * np.float32(midpoint)
    codes |= np.where(codes > 0, negative, np.uint8(0))
    wild = np.flatnonzero(~tame)
    if wild.size:
        codes.reshape(len(codes), -1, 4)[:, wild] = (
            _first_nearest(x[wild], d[wild]).reshape(wild.size, -1, 4).swapaxes(0, 1)
        )
    return codes


def _first_nearest(x: F32, d: F32) -> U8:
    best = np.zeros(x.shape, np.uint8)
    least = np.abs(x)
    for code in range(1, len(VALUES)):
        error = np.abs(np.float32(VALUES[code]) * d[:, None] - x)
        best = np.where(error < least, np.uint8(code), best)
        least = np.where(error < least, error, least)
    return best


def nearest_bound(x: F32, d: F64) -> F64:
    """Return a bound of the error of the nearest value: half the gap around x; outside the range the distance to it.

    It is at most abs(x), since 0 is a value.

    Args:
        x: blocks [blocks, n].
        d: half the scale of each block [blocks].
    """
    magnitude = np.abs(x.astype(np.float64))
    d = d[:, None]
    gap = np.where(magnitude <= 4 * d, 1.0, np.where(magnitude <= 8 * d, 2.0, 4.0)) * d
    # A value that overflows float32 is never the nearest: only a maximum that rounds to 2**128 has such.
    top = np.where(12 * d <= _LARGEST, 12 * d, 6 * d)
    limit: F64 = np.minimum(np.maximum(gap / 2, magnitude - top) * (1 + 2.0**-20), magnitude)
    return limit
