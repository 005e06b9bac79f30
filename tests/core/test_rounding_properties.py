"""The roundings that frameworks use, each against exact arithmetic on the float's own value."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.numerics.rounding import half_away, half_even, nearest_int

HALF = Fraction(1, 2)
BELOW = np.nextafter(np.float32(0.5), np.float32(0))
numbers = st.floats(1 - 2.0**22, 2.0**22 - 1, width=32)


def away(value):
    """Half away from zero, exactly."""
    magnitude = floor(abs(Fraction(value)) + HALF)
    return -magnitude if value < 0 else magnitude


def of(function, value):
    return function(np.array([value], np.float32))[0]


@given(numbers)
def test_half_away_is_roundf(value):
    assert of(half_away, value) == away(value)


@given(numbers)
def test_half_even_and_nearest_int_are_rint(value):
    assert of(half_even, value) == round(Fraction(value))
    assert of(nearest_int, value) == round(Fraction(value))


@given(st.integers(-(2**21), 2**21), st.sampled_from(["half_away", "half_even"]))
def test_ties_and_their_neighbours(whole, name):
    function = {"half_away": half_away, "half_even": half_even}[name]
    tie = np.float32(whole) + np.float32(0.5)
    for value in (np.nextafter(tie, np.float32(-np.inf)), tie, np.nextafter(tie, np.float32(np.inf))):
        expected = away(float(value)) if function is half_away else round(Fraction(float(value)))
        assert of(function, value) == expected


@pytest.mark.parametrize("value", [0.5, BELOW, -BELOW, 0.0, -0.0, 2.0**23 + 1, -(2.0**30), np.inf, -np.inf])
def test_ends_of_the_range(value):
    rounded = of(half_away, value)
    assert rounded == (value if not np.isfinite(value) else away(float(value)))
    assert np.signbit(rounded) == np.signbit(np.float32(value))


def test_nearest_int_wraps_around_beyond_its_range():
    """As in C: the low 23 bits of the sum with 1.5 * 2**23 are the integer, whatever its exponent is."""
    values = np.array([2**22 - 1, 2**22, 2**22 + 1, -(2**22), -(2**22) - 1], np.float32)
    assert nearest_int(values).tolist() == [2**22 - 1, -(2**22), -(2**22), -(2**22), 2**22 - 2]
