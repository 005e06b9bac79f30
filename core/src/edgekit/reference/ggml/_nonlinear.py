"""The sixteen values of IQ4_NL and IQ4_XS, which are denser near zero, and the search for a scale.

    code     0     1     2    3    4    5    6    7    8  9   10  11  12  13  14  15
    value    -127  -104  -83  -65  -49  -35  -22  -10  1  13  25  38  53  69  89  113

The code of x under an inverse scale is that of the value nearest to ``inverse * x``, of two equally near ones the
larger. The sums of neighbouring values are whole numbers, so ``floor(2 * inverse * x)`` decides, by a table.

Source: ggml 0.25.3, ``quantize_row_iq4_nl_impl`` and ``best_index_int8``.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._codes import signed_peak
from edgekit.reference.ggml._search import EPSILON, total
from edgekit.typing import F32, F64, U8, Indices

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_REACH = 300  # larger than twice the largest value, and than all values in a search
_SUMS = VALUES[:-1].astype(np.int32) + VALUES[1:]
#: Code and value by ``floor(2 * inverse * x)`` from -_REACH to _REACH - 1, negative ones counted from the end.
_WHOLE = np.r_[np.arange(_REACH), np.arange(-_REACH, 0)]
_CODE: U8 = np.asarray(np.searchsorted(_SUMS, _WHOLE, side="right"), np.uint8)
_VALUE = VALUES[_CODE].astype(np.float32)
_TRIES = 7


def _places(x: F32, inverse: F32) -> Indices:
    """Return the indices of the elements of columns x in the tables."""
    v = x * (np.float32(2) * inverse)
    np.floor(v, out=v)
    if not (v.max() < _REACH and v.min() >= -_REACH):
        v[np.isnan(v)] = _REACH  # ggml's search ends at the last value
        np.clip(v, -_REACH, _REACH - 1, out=v)
    return v.astype(np.intp)


def codes(x: F32, inverse: F32) -> U8:
    """Return the codes of columns x [n, blocks] under the inverse scales [blocks]."""
    nearest: U8 = _CODE[_places(x, inverse)]
    return nearest


def search(x: F32, weights: F32) -> F32:
    """Return the scale of each block [blocks] with the least weighted squared error, from columns [n, blocks]."""
    peak = signed_peak(x.T, x.max(axis=0), x.min(axis=0))
    zero = np.abs(peak) < EPSILON
    peak = np.where(zero, np.float32(1), peak)

    def fit(inverse: F32) -> tuple[F32, F32]:
        values = _VALUE[_places(x, inverse)]
        return total(weights * values * x), total(weights * values * values)

    sum_qx, sum_q2 = fit(np.float32(1) / (-peak / np.float32(VALUES[0])))
    scale = np.where(sum_q2 > 0, sum_qx / sum_q2, np.float32(0))
    best = scale * sum_qx
    for step in range(-_TRIES, _TRIES + 1):
        sum_qx, sum_q2 = fit(np.float32(step + int(VALUES[0])) / peak)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = np.where(better, sum_qx / sum_q2, scale)
        best = np.where(better, scale * sum_qx, best)
    return np.where(zero, np.float32(0), scale)


def nearest_bound(x: F32, step: F64, drift: F64) -> F64:
    """Return a bound of the error of the nearest value: half the gap around x; outside the range the distance to it.

    Args:
        x: blocks [blocks, n].
        step: stored scale of each block [blocks].
        drift: largest difference from the scale with which the codes were chosen. Each of up to 127 steps changes by
            this much, and x may be in the neighbouring gap under that scale.
    """
    x, step, drift = x.astype(np.float64), step[:, None], drift[:, None]
    ratio = np.divide(x, step, out=np.zeros_like(x), where=step != 0)
    shift = np.abs(ratio) * np.divide(drift, np.abs(step), out=np.zeros_like(step), where=step != 0) * 2 + 2.0**-20
    gap = np.maximum(_gap(ratio - shift), _gap(ratio + shift)) * np.abs(step)
    ends = step * VALUES[0], step * VALUES[-1]
    outside = np.maximum(np.maximum(np.minimum(*ends) - x, x - np.maximum(*ends)), 0)
    slop = 2.0**-20 * (np.abs(x) + 127 * np.abs(step)) + 2.0**-140
    bound: F64 = gap / 2 + outside + 2 * 127 * drift + slop
    return bound


def _gap(v: F64) -> F64:
    """Return the distance between the two values around v."""
    gaps = np.diff(VALUES.astype(np.float64))
    place = np.searchsorted(VALUES, v, side="right") - 1
    gap: F64 = gaps[np.clip(place, 0, len(gaps) - 1)]
    return gap
