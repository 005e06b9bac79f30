"""Rounding to codes, and the extremes of a block, with the results of ggml's C code."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._layout import lanes, peak, spread
from edgekit.typing import F32, U8

Integer = TypeVar("Integer", np.int8, np.uint8)

_WRAP = np.float32(1 << 22)  # beyond this, `nearest_int` wraps around
_HALF = np.uint32(0x3EFFFFFF)  # 0.49999997, the largest float32 below one half
_SIGN = np.uint32(0x80000000)


def round_clip(v: F32, low: int, high: int, tame: bool = False) -> F32:
    """Return ``clip(nearest_int(v), low, high)`` as float32, computed in place.

    Rounding and clipping of floats is three times faster, and equal as long as ``nearest_int`` does not wrap around.

    Args:
        v: any shape.
        low: the smallest code.
        high: the largest code.
        tame: whether it is known that nothing wraps around.
    """
    if tame or (v.max() < _WRAP and v.min() > -_WRAP):
        return np.clip(np.rint(v, out=v), np.float32(low), np.float32(high), out=v)
    v[...] = np.clip(nearest_int(v), low, high)
    return v


def round_away(v: F32) -> F32:
    """Return C's ``roundf`` before the truncation, which the cast to an integer does; computed in place."""
    half = v.view(np.uint32) & _SIGN
    half |= _HALF
    v += half.view(np.float32)
    return v


def reciprocal(d: F32) -> F32:
    """Return ``d ? 1 / d : 0``; infinite for subnormal d."""
    return np.where(d != 0, np.float32(1) / d, np.float32(0))


def truncate(v: F32, dtype: type[Integer], undefined: int = 0) -> npt.NDArray[Integer]:
    """Return C's ``(int) v`` as `dtype`, whose range must contain all finite values of v.

    Infinities and NaN become `undefined`: C does not define their conversion, and processors differ.
    """
    if not (np.isfinite(v.max()) and np.isfinite(v.min())):
        v[~np.isfinite(v)] = undefined
    return v.astype(dtype)


def signed_peak(x: F32, high: F32, low: F32) -> F32:
    """Return the element of largest magnitude of each block [blocks], with its sign; of equal ones the first.

    Args:
        x: blocks [blocks, n].
        high: the largest element of each block [blocks].
        low: the smallest element of each block [blocks].
    """
    extreme = np.where(-low > high, low, high)
    extreme[extreme == 0] = 0  # the maximum starts at +0, and -0 is no larger
    tie = np.flatnonzero((-low == high) & (high > 0))
    if tie.size:
        first = (np.abs(x[tie]) == high[tie, None]).argmax(axis=1)
        extreme[tie] = x[tie, first]
    return extreme


def first_minimum(x: F32, low: F32) -> F32:
    """Return the minimum of each block [blocks]; a zero has the sign of the first zero, as with C's ``<``.

    Args:
        x: blocks [blocks, n].
        low: the smallest element of each block [blocks]; changed in place.
    """
    zero = np.flatnonzero(low == 0)
    if zero.size:
        low[zero] = x[zero, (x[zero] == 0).argmax(axis=1)]
    return low


def ternary(x: F32, undefined: int = 0) -> tuple[F32, U8]:
    """Return the largest magnitude of each block [blocks], and ``roundf(x / largest) + 1`` as codes in lanes.

    Args:
        x: blocks [blocks, n].
        undefined: the integer for a quotient that is infinite or NaN, which occurs if the largest magnitude is
            infinite, or so small that its reciprocal is infinite.
    """
    v = lanes(x)
    d = peak(np.abs(v))
    v *= spread(reciprocal(d))
    codes = truncate(round_away(v), np.int8, undefined)
    codes += np.int8(1)
    return d, codes.view(np.uint8)
