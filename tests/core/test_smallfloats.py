"""Small floats against ml_dtypes, exhaustively where finite."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.numerics import smallfloats
from edgekit.precision import find_precision
from edgekit.reference import floats

BYTES = np.arange(256, dtype=np.uint8)


def same(a, b):
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_array_equal(a[~np.isnan(a)], b[~np.isnan(b)])
    np.testing.assert_array_equal(np.signbit(a[~np.isnan(a)]), np.signbit(b[~np.isnan(b)]))


def test_every_bfloat16_widens():
    bits = np.arange(1 << 16, dtype=np.uint16)
    same(smallfloats.bfloat16_to_float32(bits), bits.view(ml_dtypes.bfloat16).astype(np.float32))


def test_every_e4m3_and_e8m0_decodes():
    same(smallfloats.float8_e4m3fn_to_float32(BYTES), BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    same(smallfloats.float8_e8m0fnu_to_float32(BYTES), BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


def test_e2m1_magnitudes():
    codes = np.arange(8, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(smallfloats.E2M1, codes.astype(np.float32))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_rounding_to_bfloat16(patterns):
    x = np.array(patterns, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    same(smallfloats.bfloat16_to_float32(smallfloats.float32_to_bfloat16(x)), expected)


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=64))
def test_rounding_to_e4m3(values):
    x = np.array(values, np.float32)
    expected = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(smallfloats.float32_to_float8_e4m3fn(x), expected)


def test_e4m3_ties_go_to_even_and_large_values_saturate():
    magnitudes = smallfloats.E4M3[:127].astype(np.float64)
    ties = ((magnitudes[:-1] + magnitudes[1:]) / 2).astype(np.float32)
    x = np.concatenate([ties, -ties, np.nextafter(ties, 0), np.nextafter(ties, 1e9)]).astype(np.float32)
    expected = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(smallfloats.float32_to_float8_e4m3fn(x), expected)
    huge = np.array([449, 1e9, np.inf, -1e9], np.float32)
    np.testing.assert_array_equal(smallfloats.float32_to_float8_e4m3fn(huge), [0x7E, 0x7E, 0x7E, 0xFE])


def test_to_float32_keeps_the_shape_of_a_scalar():
    assert smallfloats.to_float32(np.array(1.5, ml_dtypes.bfloat16)).shape == ()


@pytest.mark.parametrize(("kind", "largest"), [("F32", 0x7F7FFFFF), ("F16", 0x477FEFFF), ("BF16", 0x7F7F7FFF)])
def test_values_that_round_to_infinity_are_found(kind, largest):
    precision = find_precision(f"float:{kind}")
    x = np.array([[0, largest | 1 << 31, largest]], np.uint32).view(np.float32)
    assert floats.overflowed(floats.encode(x, precision), precision) == ""
    with np.errstate(over="ignore"):
        x[0, 2] = np.nextafter(x[0, 2], np.float32(np.inf))
    with np.errstate(all="raise"):
        parts = floats.encode(x, precision)
    assert floats.overflowed(parts, precision) == "values"
    assert floats.decode({"values": parts["values"].reshape(-1)}, precision, (3, 1)).shape == (3, 1)


def test_float16_widens_as_in_numpy():
    halves = np.arange(1 << 16, dtype=np.uint16)
    finite = halves[(halves & 0x7C00) != 0x7C00].view(np.float16)
    for values in (finite, finite[::3], finite[:0], finite.reshape(-1, 2).T, finite.astype(">f2"), finite[5]):
        ours, theirs = smallfloats.float16_to_float32(values), values.astype(np.float32)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.tobytes() == theirs.tobytes()
    with np.errstate(invalid="ignore"):
        ours, theirs = (f(halves.view(np.float16)) for f in (smallfloats.float16_to_float32, np.float32))
    np.testing.assert_array_equal(ours, theirs)
