"""nf4, cb4: sixteen levels in a table, which is not symmetric around zero.

    s = max|x| / L, with a lower limit (see `_scales`; cb4 as in small tensors)   L: 1 for nf4, 3.5 for cb4
    code = the number of the 15 boundaries below x / s                           (on a boundary: the lower code)

nf4's boundaries are the rounded midpoints in OpenVINO's NF4 type, up to one unit in the last place from the float32
midpoints of its levels; cb4's are the exact midpoints. nf4 is an element type of the IR; cb4 is a u4 constant that
indexes a float8_e4m3fn constant with the levels of `CB4`, the same for every tensor.

Sources: T. Dettmers et al., "QLoRA", 2023 (arXiv:2305.14314), appendix E, for the levels of NF4; nncf 3.4.0,
`constants.py`, for its boundaries and for CB4.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.blocks import reduce_groups
from edgekit.precision import Precision
from edgekit.reference.openvino._scales import above_zero
from edgekit.typing import F32, U8

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
NF4_BOUNDARIES = np.array(
    [
        *(-0.84809643, -0.6106329, -0.45999527, -0.33967942, -0.2346074, -0.13791174, -0.045525018),
        *(0.03979015, 0.120255254, 0.20352125, 0.29201376, 0.38931254, 0.5016634, 0.6427869, 0.8614784),
    ],
    np.float32,
)
CB4 = np.array(
    [
        *(-3.5, -2.5, -1.875, -1.375, -1.0, -0.625, -0.3125, 0.0),
        *(0.28125, 0.5625, 0.875, 1.125, 1.5, 2.0, 2.5, 3.5),
    ],
    np.float32,
)
CB4_BOUNDARIES = (CB4[1:] + CB4[:-1]) / np.float32(2)

_TABLES = {"nf4": (NF4, NF4_BOUNDARIES), "cb4": (CB4, CB4_BOUNDARIES)}


def fit(groups: F32, precision: Precision, size: int) -> tuple[F32, F32]:
    """Return float32 scales [groups, 1], and zeros as zero points; `size` is ignored."""
    amax = reduce_groups(np.maximum, np.abs(groups))
    scale = above_zero(amax, float(levels(precision)[-1]), 0)  # with L = 1 both orders are the same
    return scale, np.zeros_like(scale)


def quantize(groups: F32, scale: F32, zero_point: F32, precision: Precision) -> U8:
    """Return the indices of the levels, uint8 in the shape of groups."""
    ratio = groups / scale
    codes = np.zeros(groups.shape, np.uint8)
    beyond = np.empty(groups.shape, np.bool_)
    for boundary in _TABLES[precision.kind][1]:
        # Fifteen comparisons of cached arrays are five times faster than a binary search for each element.
        codes += np.greater(ratio, boundary, out=beyond).view(np.uint8)
    return codes


def levels(precision: Precision) -> F32:
    """Return the table of values, [16]."""
    return _TABLES[precision.kind][0]


__all__ = ["CB4", "CB4_BOUNDARIES", "NF4", "NF4_BOUNDARIES", "fit", "levels", "quantize"]
