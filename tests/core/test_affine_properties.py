"""Textbook affine: against a slow second implementation, and the properties that its page promises."""

import math
import struct

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.numerics import blocks as blocks_module
from edgekit.numerics.bits import unpack_lsb
from edgekit.precision import find_precision
from edgekit.reference import affine

LARGEST = float(np.finfo(np.float32).max)
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

ONE_BIT = find_precision("affine:int1-sym-channel")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 40))


@st.composite
def matrices(draw):
    """Finite float32 rows: any bit patterns, smooth values at any magnitude, or a coarse grid full of ties."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from(["any", "normal", "heavy", "grid"]))
    if kind == "any":
        return draw(hnp.arrays(np.float32, shape, elements=FLOATS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "grid":
        return (rng.integers(-16, 17, shape) / 2).astype(np.float32)
    values = rng.standard_normal(shape) if kind == "normal" else rng.standard_t(2, shape)
    scaled = values * 10.0 ** draw(st.integers(-44, 38))
    return np.clip(scaled, -LARGEST, LARGEST).astype(np.float32)


BITS, SYMMETRIES = st.integers(1, 8), st.booleans()


@st.composite
def precisions(draw, bits=BITS, symmetric=SYMMETRIES):
    where = draw(st.sampled_from(["channel", "tensor"]) | st.integers(1, 45).map(lambda size: f"g{size}"))
    return find_precision(f"affine:int{draw(bits)}-{'sym' if draw(symmetric) else 'asym'}-{where}")


# The second implementation: one number at a time. Python computes in float64, which is wide enough that rounding
# each result to float32 equals computing in float32.


def f32(value):
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def fold(values):
    values = list(values)
    while len(values) > 1:
        half = (len(values) + 1) // 2
        values = [values[i] + (values[half + i] if half + i < len(values) else 0.0) for i in range(half)]
    return values[0]


def slow_parameters(rows, bits, symmetric):
    """Scale and zero point of one group, given as the pieces of rows it consists of."""
    values = [value for row in rows for value in row]
    if symmetric and bits == 1:
        return f32(fold([fold(map(abs, row)) for row in rows]) / len(values)), None
    if symmetric:
        return f32(max(map(abs, values)) / (2 ** (bits - 1) - 1)), None
    n, low, high = 2**bits - 1, min(0.0, *values), max(0.0, *values)
    scale = f32(f32(high - low) / n)
    if math.isinf(scale):
        scale = min(f32(f32(high / n) - f32(low / n)), LARGEST)
    return scale, min(max(round(f32(-low / scale)), 0), n) if scale else 0


def slow_code(value, scale, zero_point, bits, symmetric):
    """The stored code of one value, and what it decodes to."""
    if symmetric and bits == 1:
        code, level = (1, 1) if value >= 0 else (0, -1)
    else:
        n = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        steps = round(f32(value / scale)) if scale else 0
        if symmetric:
            level = min(max(steps, -n), n)
            code = level + 2 ** (bits - 1)
        else:
            code = min(max(steps + zero_point, 0), n)
            level = code - zero_point
    return code, min(max(f32(level * scale), -LARGEST), LARGEST)


def slow_groups(x, precision):
    """Where each scale lies, and the rectangle that it covers: (row, group), rows, columns."""
    rows, cols = x.shape
    if precision.granularity == "tensor":
        return [((0, 0), range(rows), range(cols))]
    size = precision.block or cols
    starts = range(0, cols, size)
    return [((r, g), [r], range(s, min(s + size, cols))) for r in range(rows) for g, s in enumerate(starts)]


@settings(max_examples=250, deadline=None)
@given(matrices(), precisions())
@example(np.array([[-0.5, 1.5, 2.5]], np.float32), find_precision("affine:int2-asym-channel"))
@example(np.array([[-LARGEST, LARGEST]], np.float32), find_precision("affine:int1-asym-tensor"))
@example(np.array([[-LARGEST, LARGEST]], np.float32), find_precision("affine:int4-asym-channel"))
@example(np.array([[-LARGEST / 700, LARGEST]], np.float32), find_precision("affine:int8-asym-channel"))
# A mean whose last bit depends on the order of the sum.
@example(np.array([[1, 1, 2**-53, 2**-53, 2**-24, 2**-24, 2**-53, 2**-53]], np.float32), ONE_BIT)
def test_agrees_with_the_slow_implementation(x, precision):
    parts = affine.encode(x, precision)
    codes = unpack_lsb(parts["codes"], precision.bits, x.shape[1])
    decoded = affine.decode(parts, precision, x.shape)
    for at, rows, columns in slow_groups(x, precision):
        pieces = [[float(x[r, c]) for c in columns] for r in rows]
        scale, zero_point = slow_parameters(pieces, precision.bits, precision.symmetric)
        assert struct.pack("f", scale) == parts["scale"][at].tobytes()
        assert precision.symmetric or zero_point == parts["zero_point"][at]
        for r in rows:
            for c in columns:
                code, value = slow_code(float(x[r, c]), scale, zero_point, precision.bits, precision.symmetric)
                assert (codes[r, c], decoded[r, c]) == (code, value)


@settings(max_examples=400, deadline=None)
@given(matrices(), precisions())
def test_decodes_within_its_bound_and_stays_finite(x, precision):
    parts = affine.encode(x, precision)
    decoded = affine.decode(parts, precision, x.shape)
    assert np.isfinite(parts["scale"]).all()
    assert np.isfinite(decoded).all()
    error = np.abs(x.astype(np.float64) - decoded)
    limit = affine.bound(x, parts, precision)
    assert limit.shape == x.shape
    assert (error <= limit).all()


@settings(max_examples=200, deadline=None)
@given(matrices(), precisions())
def test_error_is_half_a_step(x, precision):
    """Tightness: wherever the scale is normal and nothing saturates, nothing lies beyond the last level."""
    assume(not (precision.symmetric and precision.bits == 1))
    assume(np.abs(x).max() < LARGEST / 4)
    parts = affine.encode(x, precision)
    scale = affine._per_element(parts["scale"], precision, x.shape[1]).astype(np.float64)
    normal = np.broadcast_to(scale >= SMALLEST_NORMAL, x.shape)
    half = np.broadcast_to(scale / 2, x.shape)[normal]
    error = np.abs(x.astype(np.float64) - affine.decode(parts, precision, x.shape))[normal]
    assert (error <= half * (1 + 2.0**-13)).all()
    assert (affine.bound(x, parts, precision)[normal] <= half * (1 + 2.0**-12)).all()


@settings(max_examples=200, deadline=None)
@given(matrices(), precisions())
def test_shapes_and_dtypes(x, precision):
    parts = affine.encode(x, precision)
    rows, cols = x.shape
    groups = {"tensor": (1, 1), "channel": (rows, 1)}.get(precision.granularity)
    shape = groups or (rows, math.ceil(cols / precision.block))
    assert set(parts) == {"codes", "scale"} | (set() if precision.symmetric else {"zero_point"})
    assert parts["codes"].shape == (rows, math.ceil(cols * precision.bits / 8))
    assert parts["codes"].dtype == np.uint8
    assert parts["scale"].shape == shape
    assert parts["scale"].dtype == np.float32
    assert not np.signbit(parts["scale"]).any()
    if not precision.symmetric:
        assert parts["zero_point"].shape == shape
        assert parts["zero_point"].dtype == np.uint8
    decoded = affine.decode(parts, precision, x.shape)
    assert (decoded.shape, decoded.dtype) == (x.shape, np.float32)


def ends_used(x, parts, precision):
    """Whether every group's codes reach from the first to the last."""
    codes = unpack_lsb(parts["codes"], precision.bits, x.shape[1])
    last = 2**precision.bits - 1
    pieces = [codes[np.ix_(rows, columns)] for _, rows, columns in slow_groups(x, precision)]
    return all(piece.min() == 0 and piece.max() == last for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(matrices(), precisions())
def test_encoding_decoded_values_changes_nothing(x, precision):
    first = affine.encode(x, precision)
    assume(precision.symmetric or ends_used(x, first, precision))
    nonzero = first["scale"][first["scale"] != 0]
    assume((nonzero >= SMALLEST_NORMAL).all())
    assume(np.abs(x).max() < LARGEST / 4)
    again = affine.encode(affine.decode(first, precision, x.shape), precision)
    np.testing.assert_array_equal(again["codes"], first["codes"])
    np.testing.assert_array_max_ulp(again["scale"], first["scale"], maxulp=0 if precision.symmetric else 2)
    if not precision.symmetric:
        np.testing.assert_array_equal(again["zero_point"], first["zero_point"])


@settings(max_examples=100, deadline=None)
@given(matrices(), precisions(bits=st.just(1), symmetric=st.just(True)))
def test_one_bit_symmetric_is_exactly_idempotent(x, precision):
    first = affine.encode(x, precision)
    assume((first["scale"] > 0).all())
    again = affine.encode(affine.decode(first, precision, x.shape), precision)
    for part, values in first.items():
        np.testing.assert_array_equal(again[part], values)


@settings(max_examples=100, deadline=None)
@given(matrices(), precisions())
def test_same_bytes_for_every_chunking_and_row_slice(x, precision):
    whole = affine.encode(x, precision)
    before = x.copy()
    x.flags.writeable = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine, "row_chunks", lambda rows, cols: blocks_module.row_chunks(rows, cols, elements=1))
        by_rows = affine.encode(x, precision)
        decoded_by_rows = affine.decode(whole, precision, x.shape)
    np.testing.assert_array_equal(x.view(np.uint32), before.view(np.uint32))
    np.testing.assert_array_equal(decoded_by_rows, affine.decode(whole, precision, x.shape))
    for part, values in whole.items():
        np.testing.assert_array_equal(by_rows[part], values)
    if precision.rowwise:
        slices = [affine.encode(x[r : r + 1], precision) for r in range(len(x))]
        for part, values in whole.items():
            np.testing.assert_array_equal(np.concatenate([s[part] for s in slices]), values)


@pytest.mark.parametrize("symmetric", ["sym", "asym"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_zeros_and_values_too_small_for_a_step_decode_to_zero(bits, symmetric):
    precision = find_precision(f"affine:int{bits}-{symmetric}-g4")
    x = np.array([[0.0, -0.0, 0.0, 0.0, 1e-45, 0.0, 0.0, 0.0]], np.float32)
    decoded = affine.decode(affine.encode(x, precision), precision, x.shape)
    np.testing.assert_array_equal(decoded[0, :4], 0.0)
    np.testing.assert_allclose(decoded, x, atol=1e-45)


def test_columns_in_one_group_equal_a_channel():
    x = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    group = affine.encode(x, find_precision("affine:int4-asym-g4096"))
    channel = affine.encode(x, find_precision("affine:int4-asym-channel"))
    for part, values in channel.items():
        np.testing.assert_array_equal(group[part], values)
