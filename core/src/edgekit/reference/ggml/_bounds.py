"""Bounds on the error of rounding to a grid, in float64.

A grid is ``value = step * code + origin`` for the codes from `low` to `high`. Rounding to the nearest value errs
by half a step within the grid's range, and by the distance to its nearer end outside. On top of that come

- the rounding of float32 arithmetic, a few units in the last place of what enters the sum, and
- *drift*: if codes are chosen with a step that is rounded to its stored type only afterwards, the value of each
  code step differs by up to ``drift`` from the one with which it was chosen.
"""

from __future__ import annotations

import numpy as np

from edgekit.typing import F16, F32, F64

_SLOP = 2.0**-20  # eight units in the last place of float32
_TINY = 2.0**-140  # and of its subnormals
_WRAP = 2.0**21  # `nearest_int` wraps around beyond 2**22 steps


def half_ulp(stored: F16) -> F64:
    """Return the largest difference of a float from the float16 to which it was rounded."""
    spacing: F64 = np.spacing(np.abs(stored)).astype(np.float64)
    return spacing / 2


def grid_bound(
    x: F32, step: F64, origin: F64 | float, low: int, high: int, drift: F64 | float = 0.0, wraps: bool = False
) -> F64:
    """Return an upper bound of the error of x rounded to the nearest value of a grid.

    Args:
        x: blocks [blocks, n].
        step: stored scale of each block [blocks].
        origin: value of code 0 in each block [blocks], or in all.
        low: the smallest code.
        high: the largest code.
        drift: half a unit in the last place of the stored scale [blocks], if it was rounded after the codes.
        wraps: whether codes come from ``nearest_int`` of a quotient, which wraps around if the step is far too small.

    Returns:
        float64 [blocks, n].
    """
    x = x.astype(np.float64)
    step, origin, drift = (np.reshape(v, (-1, 1)).astype(np.float64) for v in (step, origin, drift))
    ends = step * low + origin, step * high + origin
    bottom, ceiling = np.minimum(*ends), np.maximum(*ends)
    outside = np.maximum(np.maximum(bottom - x, x - ceiling), 0)
    widest = max(abs(low), abs(high))
    slop = _SLOP * (np.abs(x) + np.abs(origin) + np.abs(step) * widest) + _TINY
    bound: F64 = np.abs(step) / 2 + outside + (2 * widest + 0.5) * drift + slop
    if not wraps:
        return bound
    wild = (np.abs(x - origin) >= _WRAP * np.abs(step)) & (step != 0)
    farthest = np.maximum(np.abs(x - bottom), np.abs(x - ceiling))
    return np.where(wild, farthest + slop, bound)
