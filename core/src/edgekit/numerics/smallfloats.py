"""Small floating point types in plain numpy, named as ml_dtypes names them.

bfloat16 is represented as uint16 bit patterns and the 8-bit types as uint8, because numpy has no such dtypes.
`bits_of` and `like` convert ml_dtypes arrays from and to them without importing ml_dtypes.
Source: OCP Microscaling Formats (MX) v1.0 for e2m1 and e8m0; OCP 8-bit Floating Point v1.0 for e4m3fn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.errors import MissingPluginError
from edgekit.typing import F16, F32, U8, U16, Array

#: Magnitudes of float4_e2m1fn by code; bit 3 is the sign.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


_HALF_INFINITY, _HALF_MINUS_INFINITY = 0x7C00, 0xFC00  # each is the first pattern of infinity and NaN
_NO_COPIES_OF_THE_SIGN = np.int32(-0x70000001)  # all bits but 28 to 30, into which the sign is extended
_PIECE = 1 << 17  # elements that stay in the cache between two passes


def float16_to_float32(x: F16) -> F32:
    """Widen float16 to float32, exactly; several times as fast as numpy's conversion if all values are finite."""
    halves = np.ascontiguousarray(x, np.float16).reshape(-1)
    values = np.empty(halves.size, np.float32)
    for start in range(0, halves.size, _PIECE):
        _widen_halves(halves[start : start + _PIECE], values[start : start + _PIECE])
    return values.reshape(x.shape)


def _widen_halves(halves: F16, values: F32) -> None:
    signed, bits = halves.view(np.int16), values.view(np.int32)
    if signed.max() >= _HALF_INFINITY or halves.view(np.uint16).max() >= _HALF_MINUS_INFINITY:
        values[:] = halves
        return
    bits[:] = signed
    bits <<= np.int32(13)
    bits &= _NO_COPIES_OF_THE_SIGN
    values *= np.float32(2.0**112)  # the difference of the exponents' biases; subnormals become normal


def bfloat16() -> np.dtype[Any]:
    """ml_dtypes' bfloat16.

    Raises:
        MissingPluginError: ml_dtypes is not installed.
    """
    return ml_dtype("bfloat16", "this precision's scales take the source's bfloat16, which numpy lacks")


def ml_dtype(name: str, why: str) -> np.dtype[Any]:
    """ml_dtypes' type of that name; `why` it is needed, for the message.

    Raises:
        MissingPluginError: ml_dtypes is not installed.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingPluginError(f"{why}; pip install ml-dtypes") from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def bfloat16_to_float32(bits: U16) -> F32:
    """Widen bfloat16 bit patterns to float32, exactly."""
    widened = bits.astype(np.uint32)
    widened <<= np.uint32(16)  # in place: one array of the result's size, not two
    return widened.view(np.float32)


def float32_to_bfloat16(x: F32) -> U16:
    """Round to bfloat16 bit patterns, ties to even; a NaN stays a (quiet) NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def _e4m3_table() -> F32:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    with np.errstate(over="ignore"):
        value = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), np.ldexp(1 + mantissa / 8.0, exponent - 7))
    value[127] = np.nan  # e4m3fn has no infinities: only the all-ones pattern is special
    return value.astype(np.float32)


_E4M3_MAGNITUDES = _e4m3_table()
E4M3 = np.concatenate([_E4M3_MAGNITUDES, -_E4M3_MAGNITUDES])


def float8_e4m3fn_to_float32(codes: U8) -> F32:
    """Decode float8_e4m3fn codes; 0x7F and 0xFF are NaN."""
    return E4M3[codes]


def float32_to_float8_e4m3fn(x: F32) -> U8:
    """Round to float8_e4m3fn codes, ties to even, saturating at 448; a NaN becomes 0x7F. Signed zeros are kept."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    subnormal = magnitude < np.uint32(0x3C800000)  # 2**-6, the smallest normal number
    # The top 12 bits are sign, exponent and three mantissa bits; adding just under half a unit rounds to even.
    codes = (magnitude >> np.uint32(20)) & np.uint32(1)
    codes += magnitude
    codes += np.uint32(0x7FFFF)
    codes >>= np.uint32(20)
    np.clip(codes, np.uint32(120 << 3), np.uint32((120 << 3) + 126), out=codes)
    codes -= np.uint32(120 << 3)  # the difference of the exponents' biases
    if subnormal.any():
        # The unit in the last place of 2**14 is 2**-9, that of the subnormals: the sum's low bits are the code.
        small = np.minimum(magnitude, np.uint32(0x3C800000)).view(np.float32)
        small += np.float32(2.0**14)
        np.copyto(codes, small.view(np.uint32) & np.uint32(0xF), where=subnormal)
    codes |= (bits >> np.uint32(24)) & np.uint32(0x80)
    np.copyto(codes, codes | np.uint32(0x7F), where=magnitude > np.uint32(0x7F800000))
    return codes.astype(np.uint8)


#: Values of float8_e8m0fnu by code; 2**-127 is a subnormal float32.
E8M0 = np.append(np.ldexp(np.ones(255, np.float32), np.arange(-127, 128)), np.float32(np.nan)).astype(np.float32)


def float8_e8m0fnu_to_float32(codes: U8) -> F32:
    """Decode float8_e8m0fnu: 2**(code - 127); 255 is NaN."""
    return E8M0[codes]


def bits_of(x: Array) -> U16:
    """Return the bit patterns of a 2-byte float array (float16 or ml_dtypes' bfloat16)."""
    return x.view(np.uint16)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is ml_dtypes' bfloat16, by its name, so that ml_dtypes need not be installed."""
    return dtype.name == "bfloat16"


def as_float32(x: Array) -> F32:
    """Return a float32 array as it is, any other as `to_float32`."""
    return x if x.dtype == np.float32 else to_float32(x)


def to_float32(x: Array) -> F32:
    """Widen float16, bfloat16 (ml_dtypes) or float32 to float32, exactly; float64 is rounded to nearest."""
    if is_bfloat16(x.dtype):
        return bfloat16_to_float32(bits_of(np.ascontiguousarray(x))).reshape(x.shape)  # 0-d stays 0-d
    return float16_to_float32(x) if x.dtype == np.float16 else x.astype(np.float32)


__all__ = [
    "E2M1",
    "E4M3",
    "E8M0",
    "as_float32",
    "bfloat16",
    "bfloat16_to_float32",
    "bits_of",
    "float8_e4m3fn_to_float32",
    "float8_e8m0fnu_to_float32",
    "float16_to_float32",
    "float32_to_bfloat16",
    "float32_to_float8_e4m3fn",
    "is_bfloat16",
    "ml_dtype",
    "to_float32",
]
