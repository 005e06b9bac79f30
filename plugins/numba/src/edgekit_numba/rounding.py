"""Rounding and small floats, bit for bit, from integer and float32 instructions that every processor has."""

from __future__ import annotations

import numpy as np

from edgekit_numba.vectors import Vector, select

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the integer in the low mantissa bits
_MAGIC_BITS = 0x4B400000
_MANTISSA = 0x007FFFFF
_BINADE = 0x4B000000
_BELOW_HALF = 0x3EFFFFFF  # 0.49999997, the largest float32 below one half
_INTEGERS = 8388608.0  # 2**23, from which every float32 is an integer
_SIGN = -0x80000000

_HALF_OVERFLOWS = 0x47800000  # 2**16
_HALF_SUBNORMAL = 0x38800000  # 2**-14
_HALF_INFINITY = 0x7C00
_HALF_NAN = 0x7E00


def nearest_int(v: Vector) -> Vector:
    """Round as ggml's ``nearest_int``: ties to even, wrap-around for values beyond 2**22, as int32."""
    return ((v + _MAGIC).bits() & _MANTISSA) - (1 << 22)


def nearest_within(v: Vector, low: int, high: int) -> Vector:
    """Round to the nearest integer, ties to even, cut off at `low` and `high`, as int32; NaN is undefined.

    The sum is cut off, not `v`: LLVM would compile ``min(v, high) + _MAGIC`` to a comparison and a blend.
    """
    total = v + _MAGIC
    total = select(total < _MAGIC + low, _MAGIC + low, total)
    total = select(total > _MAGIC + high, _MAGIC + high, total)
    return total.bits() - _MAGIC_BITS


def round_clip(v: Vector, low: int, high: int) -> Vector:
    """``clip(nearest_int(v), low, high)`` as float32.

    The sum's bits are clipped as integers, in the one binade where they count in ones; putting the exponent of
    that binade in place is the wrap-around.
    """
    bits = ((v + _MAGIC).bits() & _MANTISSA) | _BINADE
    clipped = bits.at_least(_MAGIC_BITS + low).at_most(_MAGIC_BITS + high)
    return clipped.as_float() - _MAGIC


def rint(v: Vector) -> Vector:
    """Round to the nearest integer, ties to even; the sign of a zero may be lost."""
    magnitude = abs(v)
    rounded = (magnitude + _INTEGERS) - _INTEGERS
    rounded = select(v < 0, -rounded, rounded)
    return select(magnitude < _INTEGERS, rounded, v)


def round_away(v: Vector) -> Vector:
    """C's ``roundf`` as int32, for values that fit."""
    return (v + ((v.bits() & _SIGN) | _BELOW_HALF).as_float()).to_int()


def to_half(v: Vector) -> Vector:
    """The bits of float16, rounded half to even; overflow gives infinity."""
    bits = v.bits()
    sign, magnitude = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    odd = (magnitude >> 13) & 1
    normal = (magnitude - ((127 - 15) << 23) + 0xFFF + odd) >> 13
    subnormal = (magnitude.as_float() + 0.5).bits() - 0x3F000000  # the sum of 0.5 counts in 2**-24
    half = select(magnitude < _HALF_SUBNORMAL, subnormal, normal)
    half = select(magnitude < _HALF_OVERFLOWS, half, _HALF_INFINITY)
    return select(magnitude > 0x7F800000, _HALF_NAN, half) | sign


def from_half(half: Vector) -> Vector:
    """float16 bits as float32, exact; infinite and no number stay so."""
    shifted = (half & 0x7FFF) << 13
    scaled = shifted.as_float() * np.float32(2.0**112)
    special = (half & _HALF_INFINITY) == _HALF_INFINITY
    bits = select(special, shifted | 0x7F800000, scaled.bits())
    return (bits | ((half & 0x8000) << 16)).as_float()


__all__ = ["from_half", "nearest_int", "nearest_within", "rint", "round_away", "round_clip", "to_half"]
