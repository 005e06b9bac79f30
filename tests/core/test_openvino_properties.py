"""OpenVINO: against a slow second implementation, and what its page promises. The oracle test runs NNCF itself."""

import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.errors import UnknownPrecisionError
from edgekit.formats import rows_together
from edgekit.numerics.smallfloats import E2M1, E4M3
from edgekit.precision import catalogue, find_precision
from edgekit.reference import openvino
from edgekit.reference.openvino import _layout, codebooks

EPS = 2.0**-23
GROUPED = ["int4-sym", "int4-asym", "int3-sym", "int2-sym", "nf4", "cb4", "fp4", "fp8"]
WHOLE = ["int8-sym-channel", "int8-asym-channel", "mxfp4", "mxfp8", "nvfp4"]
NAMES = [*WHOLE, *(f"{stem}-channel" for stem in GROUPED), *(f"{stem}-g{n}" for stem in GROUPED for n in (1, 3, 8, 32))]


@st.composite
def matrices(draw, largest=2.0**100):
    """Finite float32 rows of a length that suits most groups, of every magnitude, smooth or full of ties."""
    shape = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 16, 20, 24, 32, 96]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    match draw(st.sampled_from(["bits", "normal", "heavy", "grid", "powers", "zeros"])):
        case "bits":
            x = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
            return np.where(np.abs(x) < largest, x, np.float32(1.5))  # NaN as well
        case "normal":
            x = rng.standard_normal(shape)
        case "heavy":
            x = rng.standard_t(2, shape)
        case "grid":
            x = rng.integers(-32, 33, shape) / 4
        case "powers":
            x = rng.choice([-6.0, 1.0, 6.0, 448.0], shape) * 2.0 ** rng.integers(-3, 4, shape)
        case "zeros":
            x = np.where(rng.random(shape) < 0.5, -0.0, 0.0) + (rng.random(shape) < 0.1)
    x = x * 2.0 ** draw(st.integers(-40, 14))
    return np.clip(x + draw(st.sampled_from([0.0, 0.0, 8.0])) * np.abs(x).max(), -largest, largest).astype(np.float32)


@st.composite
def cases(draw, largest=2.0**100):
    x = draw(matrices(largest))
    fitting = [p for n in NAMES if x.shape[1] % ((p := find_precision(f"openvino:{n}")).block or 1) == 0]
    return x, draw(st.sampled_from(fitting))


# The second implementation: one number at a time. Python computes in float64, which is wide enough that rounding
# each result to float32 equals computing in float32.


def f32(value):
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def f16(value):
    try:
        return struct.unpack("e", struct.pack("e", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def nearest(magnitudes, value):
    """The index of the nearest magnitude; a tie goes to the even index."""
    return min(range(len(magnitudes)), key=lambda i: (abs(magnitudes[i] - abs(value)), i % 2))


def signed(magnitudes, value, sign_bit):
    return nearest(magnitudes, value) + (sign_bit if math.copysign(1, value) < 0 else 0)


E2M1_TIES, E4M3_TIES, CB4_TIES = (E2M1[1:] + E2M1[:-1]) / 2, (E4M3[1:126] + E4M3[:125]) / 2, codebooks.CB4_BOUNDARIES
# Halfway between two float16 of which one is halfway between two e4m3; and the float32 on either side.
F16_HALFWAY = np.array([1.0625 + 2.0**-11, 1.1875 - 2.0**-11], np.float32)
F16_TIES = np.concatenate(
    [F16_HALFWAY, np.nextafter(F16_HALFWAY, np.float32(1)), np.nextafter(F16_HALFWAY, np.float32(2))]
)
E2M1_LIST, E4M3_LIST = E2M1.tolist(), E4M3[:127].tolist()


def e4m3(value):
    return signed(E4M3_LIST, f16(value), 128)


def above_zero(amax, largest, size):
    return f32(max(amax, EPS) / largest) if size >= 10_000 else max(f32(amax / largest), EPS)


def slow_scale(values, precision, size):
    """Scale and zero point of one group."""
    kind, half = precision.kind, 2 ** (precision.bits - 1)
    if kind.startswith("int") and precision.symmetric:
        low, high = abs(min(values)), max(values)
        scale = f32((low if low >= high else -high) / half)
        return (scale if abs(scale) >= EPS else EPS), 0
    if kind.startswith("int"):
        low, high = min(0.0, *values), max(0.0, *values)
        scale = max(f32(f32(high - low) / (2 * half - 1)), EPS)
        return scale, min(max(-round(f32(low / scale)), 0), 2 * half - 1)
    largest = {"nf4": 1.0, "cb4": 3.5, "fp8": 448.0, "mxfp8": 448.0}.get(kind, 6.0)
    scale = above_zero(max(map(abs, values)), largest, 0 if kind == "cb4" else size)
    if kind.startswith("mx"):
        large = f32(f32(math.log(scale)) * f32(1.442695))
        scale = 2.0 ** math.ceil(large if size >= 10_000 else f32(math.log2(scale)))
    return scale, 0


def slow_code(value, scale, zero_point, precision):
    """The code pattern of one value, and its level."""
    kind, half = precision.kind, 2 ** (precision.bits - 1)
    ratio = f32(value / scale)
    if kind.startswith("int") and precision.symmetric:
        level = min(max(round(ratio), -half), half - 1)
        return (level + half if kind in ("int3", "int2") else level % (2 * half)), level
    if kind.startswith("int"):
        code = min(max(round(f32(ratio + zero_point)), 0), 2 * half - 1)
        return code, code - zero_point
    if kind == "nf4":
        code = sum(boundary < ratio for boundary in codebooks.NF4_BOUNDARIES.tolist())
        return code, codebooks.NF4.tolist()[code]
    if kind == "cb4":
        table = codebooks.CB4.tolist()
        code = min(range(16), key=lambda i: (abs(table[i] - ratio), i))
        return code, table[code]
    if precision.bits == 4:
        code = signed(E2M1_LIST, ratio, 8)
        return code, math.copysign(E2M1_LIST[code % 8], ratio)
    code = e4m3(ratio)
    return code, math.copysign(E4M3_LIST[code % 128], ratio)


def slow_stored(scales, precision, size):
    """What is stored of the scales of a tensor, and the scales that decoding multiplies with."""
    if precision.kind != "nvfp4":
        return None, [f16(s) if precision.scale_dtype == "float16" else s for s in scales]
    shared = above_zero(max(scales), 448.0, len(scales))
    return shared, [f16(f32(E4M3_LIST[e4m3(f32(s / shared))] * shared)) for s in scales]


def slow_pack(codes, bits):
    """A stream of codes as bytes, bit by bit."""
    if bits != 3:
        number = sum(code << (bits * place) for place, code in enumerate(codes))
        return number.to_bytes(-(-len(codes) * bits // 8), "little")
    packed = b""
    for start in range(0, len(codes), 8):
        block = (codes[start : start + 8] + [0] * 8)[:8]
        low = sum((code & 3) << (14 - 2 * place) for place, code in enumerate(block))
        high = sum((code >> 2) << (7 - place) for place, code in enumerate(block))
        packed += low.to_bytes(2, "big") + bytes([high])
    return packed


def slow_encode(x, precision):
    """Codes, zero points and stored scales as bytes or lists, and the decoded values."""
    groups = x.reshape(-1, precision.block or x.shape[1]).tolist()
    fitted = [slow_scale(group, precision, x.size) for group in groups]
    shared, stored = slow_stored([scale for scale, _ in fitted], precision, x.size)
    codes, decoded = [], []
    for group, (scale, zero_point), t in zip(groups, fitted, stored, strict=True):
        for value in group:
            code, level = slow_code(value, scale, zero_point, precision)
            codes.append(code)
            decoded.append(f32(level * t))
    return slow_pack(codes, precision.bits), shared, stored, [z for _, z in fitted], decoded


def assert_agrees(x, precision):
    parts = openvino.encode(x, precision)
    codes, shared, stored, zero_points, decoded = slow_encode(x, precision)
    assert parts["codes"].tobytes() == codes
    if precision.kind == "nvfp4":
        assert parts["global_scale"].tolist() == [[[shared]]]
    scale = parts["scale"].reshape(-1)
    if precision.scale_dtype == "float8_e8m0fnu":
        assert scale.tolist() == [round(math.log2(t)) + 127 for t in stored]
    elif precision.scale_dtype == "float8_e4m3fn":
        assert [f16(f32(E4M3_LIST[code] * shared)) for code in scale] == stored
    else:
        assert scale.tolist() == stored
    if not precision.symmetric:
        assert parts["zero_point"].tobytes() == slow_pack(zero_points, precision.bits)
    np.testing.assert_array_equal(openvino.decode(parts, precision, x.shape).reshape(-1), np.array(decoded, np.float32))


@settings(max_examples=200, deadline=None)
@given(cases(largest=2.0**14))
@example((np.full((1, 3), 2.5, np.float32), find_precision("openvino:int4-sym-channel")))
@example((np.full((3, 1), -2.5, np.float32), find_precision("openvino:int4-asym-channel")))
@example((np.array([[7, -0.5, 0.5, 1.5, 7.5, 8, -8, 3]], np.float32), find_precision("openvino:int4-sym-channel")))
@example((np.array([[0, 0.5, 2.5, 13.5, -1.5]], np.float32), find_precision("openvino:int4-asym-channel")))
@example((np.array([[0, 0.5, 2.5, 253.5, -1.5]], np.float32), find_precision("openvino:int8-asym-channel")))
@example((np.array([[-6, *E2M1_TIES, *-E2M1_TIES, 0.0, -0.0]], np.float32), find_precision("openvino:fp4-channel")))
@example((np.array([[448, *E4M3_TIES, *-E4M3_TIES, 0.0, -0.0]], np.float32), find_precision("openvino:fp8-channel")))
@example((np.array([[448, *F16_TIES, *-F16_TIES]], np.float32), find_precision("openvino:fp8-channel")))
@example((np.array([[3.5, *CB4_TIES]], np.float32), find_precision("openvino:cb4-channel")))
@example((np.array([[1, *codebooks.NF4_BOUNDARIES]], np.float32), find_precision("openvino:nf4-channel")))
def test_agrees_with_the_slow_implementation(case):
    assert_agrees(*case)


@pytest.mark.parametrize(
    "name", [*WHOLE, "int4-asym-g3", "nf4-g32", "cb4-channel", "fp4-g32", "fp4-channel", "fp8-g32"]
)
def test_agrees_in_tensors_of_ten_thousand_elements(name):
    rng = np.random.default_rng(1)
    magnitudes = 2.0 ** np.concatenate([np.arange(-34, -12), np.arange(-8, 15, 2), [-13, -15]])
    rows = rng.uniform(-1, 1, (len(magnitudes), 288)) * magnitudes[:, None]
    rows[:, ::16] = rng.choice([6.0, 448.0, -6.0], rows[:, ::16].shape) * magnitudes[:, None] / 8
    x = rows.astype(np.float32)
    precision = find_precision(f"openvino:{name}")
    assert x.size >= 10_000
    assert_agrees(x, precision)
    assert_agrees(x[: 9_999 // 288], precision)


@settings(max_examples=200, deadline=None)
@given(cases())
@example((np.array([[448, 1.0625 + 2.0**-13]], np.float32), find_precision("openvino:fp8-channel")))
# -1.49999995 steps and zero point 10 are 8.50000005, which float32 holds as 8.5: a tie, and 8 wins.
@example((np.array([[-0.21676899, 0.67643327, -1.4912575]], np.float32), find_precision("openvino:int4-asym-channel")))
def test_decoded_values_lie_within_the_bound(case):
    x, precision = case
    x.flags.writeable = False
    parts = openvino.encode(x, precision)
    if openvino.overflowed(parts, precision):
        return
    error = np.abs(x.astype(np.float64) - openvino.decode(parts, precision, x.shape))
    limit = openvino.bound(x, parts, precision)
    assert limit.shape == x.shape
    assert limit.dtype == np.float64
    assert np.isfinite(limit).all()
    assert (error <= limit).all()


# Half the widest gap between two levels, in units of the largest one; symmetric integers: the whole step that a
# value at the shorter end can lie beyond the last level.
HALF_GAPS = {"int8": 1 / 127, "int4": 1 / 8, "int3": 1 / 4, "int2": 1 / 2}
HALF_GAPS |= {"nf4": 0.16, "cb4": 1 / 7, "fp4": 1 / 6, "fp8": 1 / 28, "mxfp4": 1 / 3, "mxfp8": 1 / 14, "nvfp4": 1 / 3}


@pytest.mark.parametrize("precision", [p for p in catalogue() if p.convention == "openvino"], ids=str)
def test_bound_is_tight(precision):
    x = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32)
    parts = openvino.encode(x, precision)
    limit = openvino.bound(x, parts, precision).reshape(-1, precision.block or 256)
    amax = np.abs(x).reshape(limit.shape).max(axis=1, keepdims=True)
    assert (limit <= 1.05 * amax * HALF_GAPS[precision.kind] + 1e-3 * amax).all()
    error = np.abs(x - openvino.decode(parts, precision, x.shape)).reshape(limit.shape)
    assert (error / limit).max() > 0.9


@settings(max_examples=60, deadline=None)
@given(cases())
def test_parts_have_the_shapes_and_types_of_the_table(case):
    x, precision = case
    rows, cols = x.shape
    parts = openvino.encode(x, precision)
    groups = cols // (precision.block or cols)
    width = {3: 3 if cols % 8 == 0 else None}.get(precision.bits, precision.bits)
    aligned = width is not None and cols * width % 8 == 0
    signed_bytes = precision.kind == "int8" and precision.symmetric
    assert parts["codes"].dtype == (np.int8 if signed_bytes else np.uint8)
    assert parts["codes"].size == _layout.packed_bytes(x.size, precision.bits)
    assert parts["codes"].shape[0] == rows if aligned else parts["codes"].ndim == 1
    assert parts["scale"].dtype == (np.float16 if precision.scale_dtype == "float16" else np.uint8)
    assert parts["scale"].shape == ((rows, groups, 1) if precision.block else (rows, 1))
    assert set(parts) - {"codes", "scale"} == (
        {"global_scale"}
        if precision.kind == "nvfp4"
        else {"zero_point"}
        if not precision.symmetric or precision.kind in ("int3", "int2")
        else set()
    )
    if precision.kind in ("int3", "int2"):
        assert parts["zero_point"].dtype == np.int8
        assert parts["zero_point"].shape == ()
        assert parts["zero_point"] == 2 ** (precision.bits - 1)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 60))
def test_chunks_do_not_change_a_byte(case, chunk):
    x, precision = case
    whole = openvino.encode(x, precision)
    decoded = openvino.decode(whole, precision, x.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_layout, "CHUNK", chunk)
        again = openvino.encode(x, precision)
        np.testing.assert_array_equal(openvino.decode(whole, precision, x.shape), decoded)
    assert {name: part.tobytes() for name, part in whole.items()} == {n: p.tobytes() for n, p in again.items()}


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 5))
def test_rows_of_rowwise_precisions_can_be_encoded_apart(case, cut):
    x, precision = case
    if not precision.rowwise or not 0 < cut < len(x):
        return
    whole, first, rest = (openvino.encode(rows, precision) for rows in (x, x[:cut], x[cut:]))
    for name, part in whole.items():
        np.testing.assert_array_equal(np.concatenate([first[name], rest[name]]), part)


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 5))
def test_rows_that_share_bytes_are_encoded_apart_from_those_that_do_not(case, pieces):
    x, precision = case
    together = rows_together(precision, x.shape)
    if not precision.packed_rows:
        assert together is None or together.rows == 1
        return
    cut = together.rows * pieces
    x = np.resize(x, (cut + 3, x.shape[1]))
    whole, first, rest = (openvino.encode(rows, precision) for rows in (x, x[:cut], x[cut:]))
    for name, part in whole.items():
        if part.ndim:
            np.testing.assert_array_equal(np.concatenate([first[name], rest[name]]), part)
            begin, nbytes = together.span(name, cut, len(x), len(x), part.nbytes)
            assert (begin, nbytes) == (first[name].nbytes, rest[name].nbytes)


def test_packed_rows_are_those_whose_only_bond_are_bytes():
    packed = {p.name for p in catalogue() if p.packed_rows}
    assert packed == {
        *(f"openvino:int4-asym-{where}" for where in ("g32", "g64", "g128", "channel")),
        *(f"openvino:{kind}-sym-{where}" for kind in ("int3", "int2") for where in ("g32", "g64", "g128", "channel")),
        *(f"openvino:{name}-channel" for name in ("int4-sym", "nf4", "cb4")),
    }


def test_rowwise_is_said_only_where_rows_are_independent_and_fill_bytes():
    apart = [p.name for p in catalogue() if p.convention == "openvino" and p.rowwise]
    assert apart == [
        "openvino:int8-sym-channel",
        "openvino:int8-asym-channel",
        *(f"openvino:{stem}-g{size}" for stem in ("int4-sym", "nf4", "cb4") for size in (32, 64, 128)),
    ]
    assert not find_precision("openvino:int4-sym-g3").rowwise


@given(st.integers(2, 8).filter(lambda b: b not in (5, 6, 7)), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count, np.uint8)
    packed = _layout.pack(codes, bits)
    assert packed.size == _layout.packed_bytes(count, bits)
    assert packed.tobytes() == slow_pack(codes.tolist(), bits)
    np.testing.assert_array_equal(_layout.unpack(packed, bits, count), codes)
    levels = np.arange(2**bits, dtype=np.float32)
    np.testing.assert_array_equal(_layout.look_up(packed, levels, bits, count), codes)


@pytest.mark.parametrize(
    ("table", "checksum"),
    [("NF4", 0xC471F81A), ("NF4_BOUNDARIES", 0xA63F7AE3), ("CB4", 0x5744302B), ("CB4_BOUNDARIES", 0x09B247E6)],
)
def test_tables_are_those_of_nncf(table, checksum):
    # Of NF4_QUANTILES, CENTER_OF_NF4_QUANTILES and CB4_QUANTILES of nncf 3.4.0 as little-endian float32.
    assert zlib.crc32(getattr(codebooks, table).astype("<f4").tobytes()) == checksum


def test_three_bits_as_openvino_lays_them_out():
    assert _layout.pack(np.arange(8, dtype=np.uint8), 3).tobytes().hex() == "1b1b0f"
    assert _layout.pack(np.array([4, 0, 0, 0, 0, 0, 0, 1], np.uint8), 3).tobytes().hex() == "000180"


def test_a_constant_positive_group_saturates():
    parts = openvino.encode(np.full((1, 32), 0.7, np.float32), find_precision("openvino:int4-sym-g32"))
    assert parts["codes"].tobytes() == b"\x77" * 16
    assert parts["scale"] == np.float16(np.float32(0.7) / 8)


def test_a_positive_extreme_gives_a_negative_scale():
    x = np.zeros((1, 32), np.float32)
    x[0, 0], x[0, 1] = 0.8, -0.7
    parts = openvino.encode(x, find_precision("openvino:int4-sym-g32"))
    assert parts["scale"] == np.float16(-0.1)
    assert parts["codes"][0, 0] == 0x78


@pytest.mark.parametrize(("exponent", "doubled"), [(-12, False), (-13, True), (-14, False), (-15, True), (-16, False)])
def test_large_tensors_have_doubled_mx_scales_at_two_powers_of_two(exponent, doubled):
    x = np.zeros((320, 32), np.float32)
    x[:, 0] = 6 * 2.0**exponent
    large = openvino.encode(x, find_precision("openvino:mxfp4"))["scale"]
    small = openvino.encode(x[:1], find_precision("openvino:mxfp4"))["scale"]
    assert (small == 127 + exponent).all()
    assert (large == 127 + exponent + doubled).all()


@pytest.mark.parametrize("rows", [624, 625])
def test_ten_thousand_elements_are_many(rows):
    x = np.full((rows, 16), 3e-7, np.float32)
    assert_agrees(x, find_precision("openvino:fp4-channel"))


@pytest.mark.parametrize(("groups", "global_scale"), [(9_999, EPS), (10_000, f32(f32(f32(1e-6) / 6) / 448))])
def test_nvfp4_counts_its_scales(groups, global_scale):
    parts = openvino.encode(np.full((groups, 16), 1e-6, np.float32), find_precision("openvino:nvfp4"))
    assert parts["global_scale"].tolist() == [[[global_scale]]]


def test_overflow_of_the_scale_is_found():
    for name, largest in [("int4-sym-g32", 65519 * 8), ("int8-asym-channel", 65519 * 255), ("nf4-g32", 65519)]:
        precision = find_precision(f"openvino:{name}")
        x = np.full((1, 32), largest, np.float32)
        assert openvino.overflowed(openvino.encode(x, precision), precision) == ""
        assert openvino.overflowed(openvino.encode(x * np.float32(1.001), precision), precision) == "scale"


def test_nvfp4_overflows_where_the_graph_rounds_its_scale_to_float16():
    precision = find_precision("openvino:nvfp4")
    parts = openvino.encode(np.full((2, 16), 1e6, np.float32), precision)
    assert np.isfinite(parts["global_scale"]).all()
    assert openvino.overflowed(parts, precision) == "scale"


@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8"])
def test_decoded_values_that_overflow_have_an_infinite_bound(kind):
    x = np.full((1, 32), 3.4e38, np.float32)
    x[0, 0] = 1e38
    precision = find_precision(f"openvino:{kind}")
    parts = openvino.encode(x, precision)
    assert openvino.overflowed(parts, precision) == ""
    np.testing.assert_array_equal(np.isinf(openvino.decode(parts, precision, x.shape)), x > 2e38)
    np.testing.assert_array_equal(np.isinf(openvino.bound(x, parts, precision)), x > 2e38)


@pytest.mark.parametrize(
    "name",
    ["int8-asym-g32", "int8-sym", "int3-asym-g32", "int2-asym-channel", "int5-sym-g32", "int4-g32", "int4-sym", "nf4",
     "nf4-sym-g32", "mxfp4-g32", "nvfp4-g16", "fp4-tensor", "int4-sym-tensor", "int4-sym-g32-reduced"],
)  # fmt: skip
def test_what_nncf_does_not_have_is_unknown(name):
    with pytest.raises(UnknownPrecisionError):
        find_precision(f"openvino:{name}")


def test_bits_per_weight():
    expected = {
        "int4-sym-g64": 4.25, "int4-asym-g64": 4.3125, "int3-sym-g32": 3.5, "int8-asym-channel": 8, "nf4-g64": 4.25,
        "fp8-g128": 8.125, "mxfp4": 4.25, "mxfp8": 8.25, "nvfp4": 4.5,
    }  # fmt: skip
    assert {name: float(find_precision(f"openvino:{name}").bits_per_weight) for name in expected} == expected
