"""MLX's formats: against a slow second implementation, and the properties that their page promises."""

import math
import struct
from bisect import bisect_left
from fractions import Fraction
from itertools import chain

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.errors import UnknownPrecisionError
from edgekit.precision import catalogue, find_precision
from edgekit.reference import mlx

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]
PRECISIONS = [p for p in catalogue() if p.convention == "mlx"]
AFFINE = [p for p in PRECISIONS if p.kind.startswith("int")]
FLOATS = [p for p in PRECISIONS if not p.kind.startswith("int")]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = [float(v) for v in np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)]

SETTINGS = settings(max_examples=120, deadline=None)


def finite(values, dtype):
    """Values in a type, those that it cannot hold clipped to its largest number."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(values, -largest, largest).astype(np.float32).astype(dtype)


@st.composite
def matrices(draw, cols=128, dtypes=DTYPES):
    """Finite rows: any bit patterns, smooth values at any magnitude, constants, or a coarse grid full of ties."""
    dtype = draw(st.sampled_from(dtypes))
    shape = (draw(st.integers(1, 3)), cols)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["bits", "normal", "heavy", "grid", "constant", "positive", "zeros"]))
    if kind == "bits":
        bits = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, dtype=np.uint64).astype(f"u{dtype.itemsize}")
        x = bits.view(dtype)
        return np.where(np.isfinite(x.astype(np.float32)), x, np.zeros((), dtype))
    power = 2.0 ** draw(st.integers(-145, 127) if draw(st.booleans()) else st.integers(-12, 4))
    values = {
        "normal": rng.standard_normal(shape),
        "heavy": rng.standard_t(2, shape),
        "grid": rng.integers(-24, 25, shape) / 4,
        "constant": np.full(shape, rng.standard_normal()),
        "positive": rng.random(shape) + 0.5,
        "zeros": rng.integers(-1, 2, shape) * rng.integers(0, 2, shape) * -0.0,
    }[kind]
    return finite(values * power, dtype)


# The second implementation: one number at a time. Python computes in float64, which is wide enough that rounding
# each result to float32 equals computing in float32.


def f32(value):
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def rounded(value, dtype):
    with np.errstate(over="ignore"):
        return float(np.float32(value).astype(dtype))


def divide(a, b):
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
    return f32(a / b)


def slow_line(values, bits):
    """Scale and bias of one group, in float32."""
    low, high, eps = min(values), max(values), f32(1e-7)
    if bits == 1:
        return max(f32(high - low), eps), next(v for v in values if v == low)
    scale = max(divide(f32(high - low), 2**bits - 1), eps)
    edge = low if abs(low) > abs(high) else high
    scale = scale if abs(low) > abs(high) else -scale
    q0 = divide(edge, scale)
    q0 = q0 if math.isinf(q0) else float(round(q0))
    return (divide(edge, q0), edge) if q0 else (scale, 0.0)


def slow_code(value, scale, bias, bits):
    position = divide(f32(value - bias), scale)
    if math.isnan(position):
        return 0
    return min(max(round(position) if math.isfinite(position) else position, 0), 2**bits - 1)


def slow_stream(codes, bits):
    """One little-endian LSB-first bit stream, as 32-bit words."""
    codes = list(codes)
    total = sum(code << (bits * i) for i, code in enumerate(codes))
    return [(total >> (32 * i)) & 0xFFFFFFFF for i in range(len(codes) * bits // 32)]


def slow_nearest(value, magnitudes):
    """Index of the nearest magnitude, ties to the first."""
    return min(range(len(magnitudes)), key=lambda i: abs(value - Fraction(magnitudes[i])))


def slow_e2m1(value):
    code = slow_nearest(Fraction(min(abs(value), 6.0)), E2M1)
    return code + 8 if value < 0 and code else code


def slow_e2m1_by_distance(value):
    """The first of the smallest float32 distances: far away they are all alike."""
    if not math.isfinite(value):
        return 0
    distances = [abs(f32(value - sign * magnitude)) for sign in (1, -1) for magnitude in E2M1]
    return distances.index(min(distances))


def slow_e4m3(value):
    """Ties to even: of two neighbours the one whose code is even."""
    magnitude = min(abs(value), 448.0)
    above = bisect_left(E4M3, magnitude)
    code = min((max(above - 1, 0), above), key=lambda i: (abs(Fraction(magnitude) - Fraction(E4M3[i])), i % 2))
    return code + 128 if math.copysign(1, value) < 0 else code


def slow_exponent(largest, limit, dtype):
    scale = rounded(f32(largest / limit), dtype)
    if scale == 0:
        return 0
    return next(exponent for exponent in range(-160, 128) if Fraction(2) ** exponent >= Fraction(scale))


def slow_mx(values, precision, dtype):
    exponent = slow_exponent(max(map(abs, values)), 448 if precision.bits == 8 else 6, dtype)
    encoder = slow_e4m3 if precision.bits == 8 else slow_e2m1
    return (exponent + 127) % 256, [encoder(math.ldexp(v, -exponent)) for v in values]


def slow_nvfp4(values, spread, dtype):
    scale = slow_e4m3(f32(rounded(f32(max(map(abs, values)) / 6), dtype) * spread))
    if scale == 0:
        return 0, [0] * len(values)
    return scale, [slow_e2m1_by_distance(f32(rounded(divide(v, E4M3[scale]), dtype) * spread)) for v in values]


def each_group(x, size):
    for row in x.astype(np.float32).tolist():
        yield [row[i : i + size] for i in range(0, len(row), size)]


@SETTINGS
@given(matrices(), st.sampled_from(AFFINE))
def test_affine_agrees_with_the_slow_implementation(x, precision):
    parts = mlx.encode(x, precision)
    for r, row in enumerate(each_group(x, precision.block)):
        lines = [slow_line(values, precision.bits) for values in row]
        with np.errstate(over="ignore"):
            expected = [np.array(part, np.float32).astype(x.dtype).tobytes() for part in zip(*lines, strict=True)]
        assert [parts["scales"][r].tobytes(), parts["biases"][r].tobytes()] == expected
        codes = [slow_code(v, *line, precision.bits) for values, line in zip(row, lines, strict=True) for v in values]
        assert parts["weight"][r].tolist() == slow_stream(codes, precision.bits)


@SETTINGS
@given(matrices(), st.sampled_from(AFFINE), st.integers(0, 2**32 - 1))
def test_affine_decodes_any_words_with_two_roundings(x, precision, seed):
    b = precision.bits
    parts = mlx.encode(x, precision)
    words = np.random.default_rng(seed).integers(0, 2**32, parts["weight"].shape, dtype=np.uint32)
    decoded = mlx.decode({**parts, "weight": words}, precision, x.shape)
    stream = sum(int(word) << (32 * i) for i, word in enumerate(words[0]))
    q = np.array([(stream >> (b * i)) & (2**b - 1) for i in range(x.shape[1])], np.float32)
    s, bias = (parts[name][0].astype(np.float32).repeat(precision.block) for name in ("scales", "biases"))
    with np.errstate(all="ignore"):
        product = (q * s).astype(x.dtype).astype(np.float32)
        expected = (product + bias).astype(x.dtype).astype(np.float32)
    np.testing.assert_array_equal(decoded[0], expected)


@SETTINGS
@given(matrices(cols=32), st.sampled_from(["mxfp4", "mxfp8"]).map(lambda kind: find_precision(f"mlx:{kind}")))
def test_microscaling_agrees_with_the_slow_implementation(x, precision):
    parts = mlx.encode(x, precision)
    for r, row in enumerate(each_group(x, 32)):
        scales, codes = zip(*(slow_mx(values, precision, x.dtype) for values in row), strict=True)
        assert parts["scales"][r].tolist() == list(scales)
        assert parts["weight"][r].tolist() == slow_stream(chain(*codes), precision.bits)


@SETTINGS
@example(np.linspace(2.0**24, 2.0**26, 32, dtype=np.float32)[None] * np.float32(448), find_precision("mlx:nvfp4"))
@example(np.linspace(-(2.0**25), -(2.0**26), 32, dtype=np.float32)[None] * np.float32(448), find_precision("mlx:nvfp4"))
@given(matrices(cols=32), st.sampled_from(["nvfp4", "nvfp4-tensor"]).map(lambda kind: find_precision(f"mlx:{kind}")))
def test_nvfp4_agrees_with_the_slow_implementation(x, precision):
    largest = float(np.abs(x.astype(np.float32)).max())
    if precision.whole_tensor and largest < 2.0**-100:
        return  # where formulas end: tested below
    parts = mlx.encode(x, precision)
    spread = f32(2688 / largest) if precision.whole_tensor else 1.0
    for r, row in enumerate(each_group(x, 16)):
        scales, codes = zip(*(slow_nvfp4(values, spread, x.dtype) for values in row), strict=True)
        assert parts["scales"][r].tolist() == list(scales)
        assert parts["weight"][r].tolist() == slow_stream(chain(*codes), 4)
    assert float(parts.get("global_scale", largest)) == largest


@settings(max_examples=400, deadline=None)
@given(matrices(), st.sampled_from(PRECISIONS))
@example(np.full((1, 128), 65504, np.float16), find_precision("mlx:int8-g64"))
@example(np.full((1, 128), 6e-8, np.float16), find_precision("mlx:nvfp4-tensor"))
@example(np.linspace(-1, 1, 128, dtype=np.float32)[None], find_precision("mlx:int2-g128"))
def test_decoded_values_lie_within_the_bound(x, precision):
    parts = mlx.encode(x, precision)
    if mlx.overflowed(parts, precision):
        return
    limit = mlx.bound(x, parts, precision)
    decoded = mlx.decode(parts, precision, x.shape).astype(np.float64)
    assert limit.shape == x.shape
    assert limit.dtype == np.float64
    assert (np.abs(x.astype(np.float64) - decoded) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_bound_is_tight(precision, dtype):
    """Nearly reached by some element; where the stored scale's rounding dominates, all roundings rarely add up."""
    x = np.random.default_rng(0).standard_normal((32, 1024)).astype(dtype)
    parts = mlx.encode(x, precision)
    error = np.abs(x.astype(np.float64) - mlx.decode(parts, precision, x.shape))
    limit = mlx.bound(x, parts, precision)
    wide_bfloat16 = dtype == BFLOAT16 and precision.kind in ("int5", "int6", "int8")
    assert (0.55 if wide_bfloat16 else 0.8) < (error / limit).max() <= 1
    assert limit.mean() / error.mean() < (8 if wide_bfloat16 else 3.2)


@pytest.mark.parametrize(
    ("name", "value", "half_a_gap"),
    [("mxfp4", v, h) for v, h in ((0.1, 0.25), (2, 0.25), (2.1, 0.5), (4, 0.5), (4.1, 1), (5.9, 1))]
    + [
        ("mxfp8", v, h)
        for v, h in ((0.01, 2**-10), (0.017, 2**-10), (0.04, 2**-9), (1.9, 2**-4), (2.1, 2**-3), (447, 16))
    ],
)
def test_the_bound_of_elements_is_half_a_gap(name, value, half_a_gap):
    precision = find_precision(f"mlx:{name}")
    parts, x = encode([448 if name == "mxfp8" else 6, value], precision.name)
    assert mlx.bound(x, parts, precision)[0, 1] == half_a_gap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_parts_have_the_frameworks_names_types_and_shapes(precision, dtype):
    x = np.random.default_rng(1).standard_normal((5, 256)).astype(dtype)
    x.flags.writeable = False
    before = x.tobytes()
    parts = mlx.encode(x, precision)
    groups = (5, 256 // precision.block)
    expected = {"weight": (np.dtype(np.uint32), (5, 256 * precision.bits // 32))}
    if precision in AFFINE:
        expected |= {"scales": (dtype, groups), "biases": (dtype, groups)}
    else:
        expected |= {"scales": (np.dtype(np.uint8), groups)}
    if precision.whole_tensor:
        expected |= {"global_scale": (np.dtype(np.float32), ())}
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == expected
    decoded = mlx.decode(parts, precision, x.shape)
    assert (decoded.dtype, decoded.shape) == (np.dtype(np.float32), x.shape)
    assert x.tobytes() == before


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_rows_are_encoded_alike_in_any_company(precision):
    x = np.random.default_rng(2).standard_normal((70, 1024)).astype(np.float32)  # more than one chunk
    whole = mlx.encode(x, precision)
    if precision.whole_tensor:
        x[3:] = np.clip(x[3:], -1, 1)
        assert not np.array_equal(mlx.encode(x, precision)["scales"][:3], mlx.encode(x[3:], precision)["scales"][:3])
        return
    for name, part in whole.items():
        alone = [mlx.encode(x[r : r + 1], precision)[name] for r in (0, 63, 64, 69)]
        np.testing.assert_array_equal(np.concatenate(alone), part[[0, 63, 64, 69]])
    decoded = mlx.decode(whole, precision, x.shape)
    last = mlx.decode({name: part[69:] for name, part in whole.items()}, precision, (1, 1024))
    np.testing.assert_array_equal(decoded[69:], last)


@settings(max_examples=60, deadline=None)
@given(matrices(dtypes=DTYPES[:1]), st.sampled_from(["mlx:mxfp4", "mlx:mxfp8"]))
def test_microscaling_keeps_what_it_has_decoded_once(x, name):
    precision = find_precision(name)
    x = np.where(np.abs(x) < 2.0**-100, np.float32(0), np.clip(x, -1e37, 1e37)).astype(np.float32)
    once = mlx.decode(mlx.encode(x, precision), precision, x.shape)
    twice = mlx.decode(mlx.encode(once, precision), precision, x.shape)
    np.testing.assert_array_equal(once, twice)


@SETTINGS
@given(matrices(dtypes=DTYPES[1:]), st.sampled_from(AFFINE))
def test_affine_codes_are_those_of_the_widened_source(x, precision):
    """Only the stored scale knows the source's type; where it overflows, so may the comparison's."""
    parts = mlx.encode(x, precision)
    widened = mlx.encode(x.astype(np.float32), precision)
    np.testing.assert_array_equal(parts["weight"], widened["weight"])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(parts["scales"], widened["scales"].astype(x.dtype))


@SETTINGS
@given(matrices(dtypes=DTYPES[2:]), st.sampled_from(AFFINE))
def test_bfloat16_scales_decode_alike_as_bit_patterns(x, precision):
    parts = mlx.encode(x, precision)
    carried = {name: part.view(np.uint16) if name != "weight" else part for name, part in parts.items()}
    np.testing.assert_array_equal(
        mlx.decode(parts, precision, x.shape), mlx.decode(carried, precision, x.shape), strict=True
    )
    assert mlx.overflowed(parts, precision) == mlx.overflowed(carried, precision)


# Known answers, worked out by hand.


def encode(values, name, dtype=np.float32):
    x = np.zeros((1, find_precision(name).block), dtype)
    x[0, : len(values)] = values
    return mlx.encode(x, find_precision(name)), x


def test_affine_counts_down_from_the_larger_end():
    parts, x = encode(range(16), "mlx:int4-g32")
    assert (parts["scales"].item(), parts["biases"].item()) == (-1, 15)
    assert parts["weight"].tolist() == [[0x89ABCDEF, 0x01234567, 0xFFFFFFFF, 0xFFFFFFFF]]
    np.testing.assert_array_equal(mlx.decode(parts, find_precision("mlx:int4-g32"), (1, 32)), x)


def test_affine_counts_up_where_the_negative_end_is_larger():
    parts, x = encode([-v for v in range(16)], "mlx:int4-g32")
    assert (parts["scales"].item(), parts["biases"].item()) == (1, -15)
    np.testing.assert_array_equal(mlx.decode(parts, find_precision("mlx:int4-g32"), (1, 32)), x)


def test_affine_moves_the_scale_so_that_zero_is_exact_and_cuts_off_the_other_end():
    """-1 … 1 in 2 bits: s = 2/3, q0 = rint(1.5) = 2, so s = -1/2 from 1, and -1 becomes -1/2."""
    parts, _ = encode([1, -1], "mlx:int2-g32")
    assert (parts["scales"].item(), parts["biases"].item()) == (-0.5, 1)
    assert mlx.decode(parts, find_precision("mlx:int2-g32"), (1, 32))[0, :3].tolist() == [1, -0.5, 0]


def test_one_bit_has_the_two_ends():
    parts, _ = encode([3, -1] * 16, "mlx:int1-g32")
    assert (parts["scales"].item(), parts["biases"].item(), parts["weight"].item()) == (4, -1, 0x55555555)


@pytest.mark.parametrize(("values", "bits"), [([1, 0.0, -0.0, 2], 0), ([1, -0.0, 0.0, 2], 0x80000000)])
def test_one_bit_keeps_the_sign_of_the_first_zero(values, bits):
    parts, _ = encode(values * 8, "mlx:int1-g32")
    assert parts["biases"].view(np.uint32).item() == bits


def test_empty_groups_have_the_smallest_scale():
    parts, _ = encode([], "mlx:int4-g32")
    assert (parts["scales"].item(), parts["biases"].item()) == (-np.float32(1e-7), 0)
    parts, _ = encode([], "mlx:int4-g32", np.float16)
    assert parts["scales"].item() == -(2.0**-23)  # what float16 makes of 1e-7


def test_e2m1_ties_go_to_the_smaller_magnitude_and_zero_has_no_sign():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    parts, _ = encode([6, *ties, -6, *(-t for t in ties), -0.0], "mlx:mxfp4")
    assert parts["scales"].item() == 127
    assert parts["weight"].tolist() == [[0x65432107, 0xEDCBA90F, 0, 0]]
    up, _ = encode([6, *np.nextafter(np.float32(ties), 9), -6, *np.nextafter(np.float32(ties), 9) * -1], "mlx:mxfp4")
    assert up["weight"].tolist() == [[0x76543217, 0xFEDCBA9F, 0, 0]]


def test_microscaling_rounds_the_exponent_up_and_exactly():
    """log2 of a float32 just above 2^100 is 100; the exponent still has to be 101."""
    above = float(np.nextafter(np.float32(6 * 2.0**100), np.float32(np.inf)))
    assert [encode([v], "mlx:mxfp4")[0]["scales"].item() for v in (6.0, 6.1, 6 * 2.0**100, above)] == [
        127,
        128,
        227,
        228,
    ]
    assert [encode([v], "mlx:mxfp8")[0]["scales"].item() for v in (448.0, 449.0)] == [127, 128]


def test_e4m3_keeps_the_sign_of_zero():
    parts, _ = encode([448, -0.0], "mlx:mxfp8")
    assert parts["weight"][0, 0] == 0x807E


def test_nvfp4_fills_the_scales_range_with_a_global_scale():
    parts, x = encode([6, 3, -6, 0.5], "mlx:nvfp4-tensor")
    assert (parts["global_scale"].item(), parts["scales"].item(), parts["weight"][0, 0]) == (6, 0x7E, 0x1F57)
    np.testing.assert_array_equal(mlx.decode(parts, find_precision("mlx:nvfp4-tensor"), (1, 16)), x)
    parts, _ = encode([6, 3, -6, 0.5], "mlx:nvfp4")
    assert (parts["scales"].item(), parts["weight"][0, 0]) == (0x38, 0x1F57)


# Where formulas end.


@pytest.mark.parametrize("value", [1e32, -1e38])
def test_a_huge_constant_is_kept_by_the_bias_alone(value):
    parts, x = encode([value] * 32, "mlx:int4-g32")
    assert (parts["scales"].item(), parts["weight"].any()) == (0, False)
    np.testing.assert_array_equal(mlx.decode(parts, find_precision("mlx:int4-g32"), (1, 32)), x)


@pytest.mark.parametrize("name", ["mlx:int1-g32", "mlx:int4-g32"])
def test_a_range_beyond_float32_overflows_the_scale(name):
    parts, _ = encode([3e38, -3e38], name)
    assert mlx.overflowed(parts, find_precision(name)) == "scales"
    assert not parts["weight"].any()


def test_float16_overflows_while_decoding_and_the_bound_says_so():
    precision = find_precision("mlx:int4-g32")
    parts, x = encode([60000, -52500], "mlx:int4-g32", np.float16)
    assert mlx.overflowed(parts, precision) == ""
    assert mlx.decode(parts, precision, x.shape)[0, :3].tolist() == [60000, -np.inf, 0]
    assert np.isinf(mlx.bound(x, parts, precision)[0, :3]).tolist() == [False, True, False]


@pytest.mark.parametrize(("exponent", "stored"), [(-127, 0), (-128, 255), (-129, 254), (-149, 234)])
def test_exponents_below_the_scales_range_wrap_as_in_mlx(exponent, stored):
    precision = find_precision("mlx:mxfp4")
    parts, x = encode([6 * 2.0**exponent, 2.0**exponent], "mlx:mxfp4")
    assert (parts["scales"].item(), parts["weight"][0, 0]) == (stored, 0x27)
    assert mlx.overflowed(parts, precision) == ("scales" if stored == 255 else "")
    decoded = mlx.decode(parts, precision, x.shape)
    with np.errstate(over="ignore"):
        expected = (np.float32(6), np.float32(1)) * np.ldexp(np.ones(2, np.float32), stored - 127)
    np.testing.assert_array_equal(decoded[0, :2], expected)
    assert (np.abs(x - decoded)[0, :2] <= mlx.bound(x, parts, precision)[0, :2]).all()


def test_nvfp4_loses_values_far_beyond_its_scales():
    precision = find_precision("mlx:nvfp4")
    parts, x = encode([1e4, -1e4, 1], "mlx:nvfp4")
    assert mlx.decode(parts, precision, x.shape)[0, :3].tolist() == [2688, -2688, 0]
    np.testing.assert_allclose(mlx.bound(x, parts, precision)[0, :3], [7312, 7312, 112], rtol=1e-5)
    parts, x = encode([2.0**24 * 448, -(2.0**24) * 448, 1.5 * 2.0**27 * 448, -(2.0**40), 2.0**127], "mlx:nvfp4")
    assert parts["weight"][0, 0] == 0x000000F7
    assert (np.abs(x - mlx.decode(parts, precision, x.shape)) <= mlx.bound(x, parts, precision)).all()


def test_groups_too_small_for_e4m3_vanish_unless_the_tensor_has_a_scale():
    parts, x = encode([0.005, -0.001], "mlx:nvfp4")
    assert (parts["scales"].item(), parts["weight"].any()) == (0, False)
    assert mlx.decode(encode([0.005, -0.001], "mlx:nvfp4-tensor")[0], find_precision("mlx:nvfp4-tensor"), x.shape).any()


@pytest.mark.parametrize(("values", "scale"), [([], 0xFE), ([1e-38], 0x7E)])
def test_tensors_too_small_for_a_global_scale_become_zero(values, scale):
    parts, x = encode(values, "mlx:nvfp4-tensor")
    assert (parts["scales"].item(), parts["weight"].any()) == (scale, False)
    assert not mlx.decode(parts, find_precision("mlx:nvfp4-tensor"), x.shape).any()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_leaves_a_scale_that_is_refused(value):
    for name in ("mlx:int1-g32", "mlx:int4-g32"):
        parts, _ = encode([1, value, 2], name)
        assert mlx.overflowed(parts, find_precision(name)) == "scales"
        assert not parts["weight"].any()
    parts, _ = encode([1, value, 2], "mlx:nvfp4")
    assert (parts["scales"].item(), parts["weight"].any()) == (0x7E, False)


# Names.


def test_every_name_finds_its_precision():
    assert [find_precision(p.name) for p in PRECISIONS] == PRECISIONS
    assert len(PRECISIONS) == 7 * 3 + 4


@pytest.mark.parametrize(
    "name", ["int7-g32", "int4", "int4-g16", "int4-sym-g32", "int4-channel", "mxfp4-g32", "mxfp4-tensor", "nvfp4-sym"]
)
def test_what_mlx_has_not_is_unknown(name):
    with pytest.raises(UnknownPrecisionError):
        find_precision(f"mlx:{name}")


@pytest.mark.parametrize(
    ("name", "bits"), [("int4-g64", 4.5), ("int1-g32", 2.0), ("mxfp4", 4.25), ("mxfp8", 8.25), ("nvfp4-tensor", 4.5)]
)
def test_bits_per_weight(name, bits):
    x = np.ones((64, 512), np.float16)
    precision = find_precision(f"mlx:{name}")
    parts = mlx.encode(x, precision)
    assert precision.bits_per_weight == bits
    stored = sum(part.nbytes for part in parts.values() if part.ndim)
    assert Fraction(8 * stored, x.size) == precision.bits_per_weight
    assert precision.rowwise == (name != "nvfp4-tensor")
