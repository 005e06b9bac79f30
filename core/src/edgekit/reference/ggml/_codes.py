"""Rounding to codes, and the extremes of a block, exactly as ggml's C does them."""

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
    """``clip(nearest_int(v), low, high)``, in place and as float32.

    Rounding and clipping as floats is three times faster, and the same as long as nothing wraps around.

    Args:
        v: any shape.
        low: the smallest code.
        high: the largest code.
        tame: the caller knows that nothing wraps around.
    """
    if tame or (v.max() < _WRAP and v.min() > -_WRAP):
        return np.clip(np.rint(v, out=v), np.float32(low), np.float32(high), out=v)
    v[...] = np.clip(nearest_int(v), low, high)
    return v


def round_away(v: F32) -> F32:
    """C's ``roundf`` but for the truncation, which the cast to an integer does; in place."""
    half = v.view(np.uint32) & _SIGN
    half |= _HALF
    v += half.view(np.float32)
    return v


def reciprocal(d: F32) -> F32:
    """``d ? 1 / d : 0``; infinite where d is subnormal."""
    return np.where(d != 0, np.float32(1) / d, np.float32(0))


def truncate(v: F32, dtype: type[Integer], undefined: int = 0) -> npt.NDArray[Integer]:
    """``(int) v`` as `dtype`, which has to hold all of v.

    What is infinite or no number becomes `undefined`: C leaves the conversion open, and processors differ.
    """
    if not (np.isfinite(v.max()) and np.isfinite(v.min())):
        v[~np.isfinite(v)] = undefined
    return v.astype(dtype)


def signed_peak(x: F32, high: F32, low: F32) -> F32:
    """The element of largest magnitude of each block, with its sign; of equal ones the first.

    Args:
        x: blocks [blocks, n].
        high: the largest element of each [blocks].
        low: the smallest.
    """
    extreme = np.where(-low > high, low, high)
    extreme[extreme == 0] = 0  # the maximum starts at +0, and -0 is no larger
    tie = np.flatnonzero((-low == high) & (high > 0))
    if tie.size:
        first = (np.abs(x[tie]) == high[tie, None]).argmax(axis=1)
        extreme[tie] = x[tie, first]
    return extreme


def first_minimum(x: F32, low: F32) -> F32:
    """The minimum of each block with the sign that C's ``<`` gives a zero: that of the first one.

    Args:
        x: blocks [blocks, n].
        low: the smallest element of each [blocks]; written to.
    """
    zero = np.flatnonzero(low == 0)
    if zero.size:
        low[zero] = x[zero, (x[zero] == 0).argmax(axis=1)]
    return low


def ternary(x: F32, undefined: int = 0) -> tuple[F32, U8]:
    """The largest magnitude of each block [blocks], and ``roundf(x / largest) + 1`` as codes in lanes.

    Args:
        x: blocks [blocks, n].
        undefined: what a quotient that is infinite or no number counts as: where the largest magnitude is
            infinite, or so small that its reciprocal is.
    """
    v = lanes(x)
    d = peak(np.abs(v))
    v *= spread(reciprocal(d))
    codes = truncate(round_away(v), np.int8, undefined)
    codes += np.int8(1)
    return d, codes.view(np.uint8)
