"""ggml's block types: what their pages promise, without any framework. The bytes are proved in tests/oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.numerics.rounding import nearest_int
from edgekit.precision import find_precision
from edgekit.precision.ggml import BLOCKS
from edgekit.reference import ggml
from edgekit.reference.ggml import _codes, _e2m1, _layout, _nonlinear, _sixbit, mxfp4, nvfp4, q3_k
from edgekit.reference.ggml._search import affine_steps, total

KINDS = list(ggml.TYPES)
WEIGHED = [kind for kind in KINDS if ggml.TYPES[kind].IMPORTANCE != "unused"]
#: Encoding what these decode to gives the same values again: their scale comes from an element that they hold.
IDEMPOTENT = ["Q4_0", "Q5_0", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0"]
LARGEST = float(np.finfo(np.float32).max)


def precision(kind):
    return find_precision(f"ggml:{kind}")


def values(rng, what, shape):
    """Finite float32 of one kind of data."""
    if what == "bits":
        x = rng.integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32).view(np.float32)
        return np.where(np.isfinite(x), x, np.float32(1))
    if what == "grid":
        return (rng.integers(-16, 17, shape) / 2).astype(np.float32)
    if what == "sparse":
        return (rng.standard_normal(shape) * (rng.random(shape) < 0.2)).astype(np.float32)
    if what == "positive":
        return (np.abs(rng.standard_normal(shape)) + 3).astype(np.float32)
    if what == "heavy":
        return np.clip(rng.standard_t(2, shape) * 10.0 ** rng.integers(-44, 5), -LARGEST, LARGEST).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


@st.composite
def rows(draw):
    """Finite rows [1 to 3, 256 or 512], and for half of them an importance of each column, some zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 3)), 256 * draw(st.integers(1, 2))
    x = values(rng, draw(st.sampled_from(["normal", "heavy", "grid", "sparse", "positive", "bits"])), shape)
    importance = (rng.standard_normal(shape[1]) ** 2 * (rng.random(shape[1]) < 0.7)).astype(np.float32)
    return x, draw(st.sampled_from([None, importance]))


def finite_scales(kind, parts):
    """Whether all stored scales and minima are finite."""
    blocks = parts["blocks"].reshape(-1).view(ggml.TYPES[kind].LAYOUT)
    return all(np.isfinite(blocks[name]).all() for name in blocks.dtype.names if blocks.dtype[name] == np.float16)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(data=rows())
def test_decoded_values_are_within_the_bound(kind, data):
    x, importance = data
    parts = ggml.encode(x, precision(kind), importance)
    if not finite_scales(kind, parts):
        return
    error = np.abs(x.astype(np.float64) - ggml.decode(parts, precision(kind), x.shape))
    bound = ggml.bound(x, parts, precision(kind))
    assert bound.dtype == np.float64
    assert bound.shape == x.shape
    assert (error <= bound).all(), f"{kind}: {(error - bound).max()} beyond the bound"


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_reached(kind):
    x = np.random.default_rng(1).standard_normal((8, 1024)).astype(np.float32)
    parts = ggml.encode(x, precision(kind))
    error = np.abs(x.astype(np.float64) - ggml.decode(parts, precision(kind), x.shape))
    assert (error / ggml.bound(x, parts, precision(kind))).max() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(kind):
    block, size = BLOCKS[kind].block, BLOCKS[kind].size
    assert (ggml.TYPES[kind].SIZE, ggml.TYPES[kind].LAYOUT.itemsize) == (block, size)
    for n_rows, blocks in ((1, 1), (3, 2)):
        x = np.random.default_rng(2).standard_normal((n_rows, blocks * block)).astype(np.float32)
        parts = ggml.encode(x, precision(kind))
        assert set(parts) == {"blocks"}
        assert (parts["blocks"].dtype, parts["blocks"].shape) == (np.uint8, (n_rows, blocks * size))
        decoded = ggml.decode(parts, precision(kind), x.shape)
        assert (decoded.dtype, decoded.shape) == (np.float32, x.shape)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(data=rows())
def test_inputs_stay_as_they_are_and_give_the_same_again(kind, data):
    x, importance = data
    before, weights = x.copy(), None if importance is None else importance.copy()
    parts = ggml.encode(x, precision(kind), importance)
    blocks = parts["blocks"].copy()
    ggml.decode(parts, precision(kind), x.shape)
    ggml.bound(x, parts, precision(kind))
    assert x.tobytes() == before.tobytes()
    assert importance is None or importance.tobytes() == weights.tobytes()
    assert np.array_equal(parts["blocks"], blocks)
    assert np.array_equal(ggml.encode(x, precision(kind), importance)["blocks"], blocks)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(data=rows())
def test_a_slice_of_rows_is_encoded_as_in_the_whole(kind, data):
    x, importance = data
    whole = ggml.encode(x, precision(kind), importance)["blocks"]
    for row in range(len(x)):
        part = ggml.encode(x[row : row + 1], precision(kind), importance)["blocks"]
        assert np.array_equal(part, whole[row : row + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_show(kind, monkeypatch):
    rng = np.random.default_rng(3)
    x = np.vstack([values(rng, what, (1, 512)) for what in ("normal", "heavy", "grid", "sparse", "positive", "bits")])
    importance = rng.random(512, np.float32)

    def everything():
        parts = [ggml.encode(x, precision(kind), weights) for weights in (None, importance)]
        decoded = [ggml.decode(part, precision(kind), x.shape) for part in parts]
        bounds = [ggml.bound(x, part, precision(kind)) for part in parts]
        return [part["blocks"] for part in parts] + decoded + bounds

    expected, cut = everything(), ggml.row_chunks
    for elements in (1, 300, 2048):
        monkeypatch.setattr(ggml, "row_chunks", lambda n, size, *_, at=elements: cut(n, size, at))
        for found, wanted in zip(everything(), expected, strict=True):
            same = np.array_equal(found, wanted, equal_nan=found.dtype != np.uint8)
            assert same, f"chunks of {elements} elements"


@pytest.mark.parametrize("blocks", [1, 2, 3, 64])
def test_columns_are_summed_in_order(blocks):
    x = np.random.default_rng(9).standard_normal((256, blocks)).astype(np.float32)
    slow = np.zeros(blocks, np.float32)
    for row in x:
        slow += row
    assert np.array_equal(total(x), slow)
    assert not np.signbit(total(np.full((4, blocks), np.float32(-0.0)))).any()


def test_the_power_of_long_rows_is_summed_in_order():
    x = np.random.default_rng(4).standard_normal((3, 9000)).astype(np.float32)
    slow = np.zeros(3, np.float32)
    for column in x.T:
        slow += column * column
    assert np.array_equal(ggml.row_power(x), slow / np.float32(9000))


@pytest.mark.parametrize("kind", KINDS)
def test_read_only_and_unaligned_memory(kind):
    x = np.random.default_rng(10).standard_normal((2, 512)).astype(np.float32)
    memory = bytearray(x.nbytes + 4)
    memory[4:] = x.tobytes()
    odd = np.frombuffer(bytes(memory), np.float32, offset=4).reshape(x.shape)
    assert not odd.flags.writeable
    parts = ggml.encode(odd, precision(kind))
    assert np.array_equal(parts["blocks"], ggml.encode(x, precision(kind))["blocks"])


@pytest.mark.parametrize("kind", IDEMPOTENT)
@settings(max_examples=20, deadline=None)
@given(data=rows())
def test_encoding_decoded_values_changes_nothing(kind, data):
    x, _ = data
    parts = ggml.encode(x, precision(kind))
    if not finite_scales(kind, parts):
        return
    once = ggml.decode(parts, precision(kind), x.shape)
    again = ggml.decode(ggml.encode(once, precision(kind)), precision(kind), x.shape)
    assert np.array_equal(once, again)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zero(kind):
    x = np.zeros((1, 256), np.float32)
    x[:, ::3] = -0.0
    for importance in (None, np.ones(256, np.float32)):
        decoded = ggml.decode(ggml.encode(x, precision(kind), importance), precision(kind), x.shape)
        assert (decoded == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_infinities_and_overflow_give_no_warning(kind):
    x = np.random.default_rng(5).standard_normal((4, 512)).astype(np.float32)
    x[0, 7], x[1, 9], x[2] = np.inf, -np.inf, LARGEST
    with np.errstate(all="raise"):
        for importance in (None, np.ones(512, np.float32)):
            parts = ggml.encode(x, precision(kind), importance)
            ggml.decode(parts, precision(kind), x.shape)
            ggml.bound(x, parts, precision(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_importance_matters_where_it_is_said_to(kind):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 512)).astype(np.float32)
    plain = ggml.encode(x, precision(kind))["blocks"]
    weighted = ggml.encode(x, precision(kind), rng.random(512, np.float32))["blocks"]
    assert np.array_equal(plain, weighted) == (kind not in WEIGHED)


@pytest.mark.parametrize("kind", WEIGHED)
def test_importance_lowers_the_weighted_error(kind):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((16, 1024)).astype(np.float32)
    importance = (rng.standard_normal(1024) ** 6).astype(np.float32)

    def error(weights):
        decoded = ggml.decode(ggml.encode(x, precision(kind), weights), precision(kind), x.shape)
        return float(((x - decoded).astype(np.float64) ** 2 * importance).sum())

    assert error(importance) < error(None)


@given(st.integers(1, 9), st.sampled_from([(1, 2, 4), (4, 2, 4), (2, 4, 2), (1, 8, 1)]), st.integers(0, 2**32 - 1))
def test_planes_unpack_to_what_was_packed(blocks, cut, seed):
    groups, planes, bits = cut
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (blocks, 256)).astype(np.uint8)
    packed = _layout.pack_planes(_layout.to_lanes(codes), groups, planes, bits)
    assert packed.shape == (blocks, 256 // planes)
    assert np.array_equal(_layout.unpack_planes(packed, groups, planes, bits), codes)


def test_planes_take_the_bits_asked_for():
    codes = np.random.default_rng(8).integers(0, 64, (5, 256)).astype(np.uint8)
    low = _layout.pack_planes(_layout.to_lanes(codes), 2, 2, 4)
    high = _layout.pack_planes(_layout.to_lanes(codes), 2, 4, 2, first=4)
    together = _layout.unpack_planes(low, 2, 2, 4) | _layout.unpack_planes(high, 2, 4, 2, first=4)
    assert np.array_equal(together, codes)


def test_a_plane_is_where_the_layout_says():
    codes = np.arange(32, dtype=np.uint8)[None] & 15
    assert _layout.pack_planes(_layout.to_lanes(codes), 1, 2, 4).tolist() == [[17 * j for j in range(16)]]


@given(st.integers(0, 2**32 - 1))
def test_six_bit_scales_unpack_to_what_was_packed(seed):
    scales, minima = np.random.default_rng(seed).integers(0, 64, (2, 3, 8)).astype(np.uint8)
    for found, wanted in zip(_sixbit.unpack(_sixbit.pack(scales, minima)), (scales, minima), strict=True):
        assert np.array_equal(found, wanted)


@given(st.integers(0, 2**32 - 1))
def test_scales_of_q3_k_unpack_to_what_was_packed(seed):
    codes = np.random.default_rng(seed).integers(0, 64, (3, 16)).astype(np.uint8)
    assert np.array_equal(q3_k.unpack_scales(q3_k.pack_scales(codes)), codes.astype(np.int8) - 32)


# The parts that decide in rare cases, against the definition.


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_rounding_wraps_around_as_nearest_int_does(numbers):
    v = np.array(numbers, np.float32)
    with np.errstate(all="ignore"):
        expected = np.clip(nearest_int(v), -4, 3)
        assert np.array_equal(_codes.round_clip(v.copy(), -4, 3), expected)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_rounding_away_from_zero(numbers):
    v = np.array([*numbers, 0.5, -0.5, 1.5, 2.5, 0.49999997, -0.49999997], np.float32)
    expected = np.trunc(v.astype(np.float64) + np.copysign(0.5, v))
    assert np.array_equal(np.trunc(_codes.round_away(v.copy())), expected)


def test_what_cannot_be_converted_has_a_value():
    v = np.array([1.7, -2.9, np.inf, -np.inf, np.nan], np.float32)
    assert _codes.truncate(v.copy(), np.int8).tolist() == [1, -2, 0, 0, 0]
    assert _codes.truncate(v.copy(), np.int8, -1).tolist() == [1, -2, -1, -1, -1]


def test_of_equal_magnitudes_the_first_counts():
    x = np.array([[1, -2, 2], [1, 2, -2], [0, -3, 2], [0.0, -0.0, -0.0]], np.float32)
    peak = _codes.signed_peak(x, x.max(axis=1), x.min(axis=1))
    assert peak.tolist() == [-2, 2, -3, 0]
    assert not np.signbit(peak[3])


def test_of_zeros_the_first_is_the_minimum():
    x = np.array([[0.0, -0.0, 1], [-0.0, 0.0, 1], [1, -0.0, 0.0], [2, 1, -0.5]], np.float32)
    minimum = _codes.first_minimum(x, x.min(axis=1))
    assert minimum.tolist() == [0, 0, 0, -0.5]
    assert np.signbit(minimum).tolist() == [False, True, True, True]


@given(st.integers(0, 2**32 - 1))
def test_uneven_codes_are_the_nearest(seed):
    rng = np.random.default_rng(seed)
    values = _nonlinear.VALUES.astype(np.float64)
    x = np.concatenate([rng.uniform(-200, 200, 40), (values[1:] + values[:-1]) / 2, [1e6, -1e6]]).astype(np.float32)
    codes = _nonlinear.codes(x[:, None], np.ones(1, np.float32))[:, 0]
    distance = np.abs(values - x.astype(np.float64)[:, None])
    assert np.array_equal(codes, 15 - distance[:, ::-1].argmin(axis=1))  # of two equally near ones the larger


@given(st.integers(0, 2**32 - 1), st.integers(-60, 60))
def test_small_floats_are_the_nearest(seed, exponent):
    rng = np.random.default_rng(seed)
    d = np.ldexp(np.float32(1), exponent)
    sixteenths = rng.integers(-16 * 14, 16 * 14 + 1, (3, 16)).astype(np.float32) / 16
    for tame in (True, False):
        codes = _e2m1.nearest_codes(sixteenths * d, np.full(3, d), np.full(3, tame))
        distance = np.abs(_e2m1.VALUES - sixteenths[..., None])
        assert np.array_equal(_layout.from_lanes(codes), distance.argmin(axis=-1))


def test_scales_of_nvfp4():
    codes = np.arange(1, 0x78, dtype=np.uint8)
    values = nvfp4._HALF_SCALE[codes] * np.float32(2)
    assert np.array_equal(nvfp4.to_ue4m3(values), codes)
    between = (values[1:] + values[:-1]) / 2
    up = codes[:-1] != 7  # what is below the smallest normal value stays below
    assert np.array_equal(nvfp4.to_ue4m3(between), np.where(up, codes[1:], codes[:-1])), "ties go up"
    assert np.array_equal(nvfp4.to_ue4m3(np.nextafter(between, np.float32(0))), codes[:-1])
    assert nvfp4.to_ue4m3(np.array([0, 2.0**-11, 248, 256, 1e9, np.inf], np.float32)).tolist() == [0] * 2 + [0x7E] * 4


def test_exponents_of_mxfp4():
    largest = np.array([1, 2, 3.99, 6, 0.5, 2.0**-125, 2.0**-126, 0, np.inf], np.float32)
    below = np.nextafter(np.float32(64), np.float32(0))  # its logarithm, 6 - 1e-7, is rounded to 6
    with np.errstate(all="ignore"):
        blocks = mxfp4.encode(np.repeat(np.append(largest, below)[:, None], 32, axis=1))
    assert blocks["e"].tolist() == [125, 126, 126, 127, 124, 0, 255, 0, 0, 131]


def test_tables_that_are_made_when_a_module_is_imported():
    half = nvfp4._half_scales()
    assert half.dtype == np.float32
    assert half[:17].tolist() == [code / 2**10 for code in range(16)] + [2.0**-6]
    assert half[[0x38, 0x39, 0x7E, 0x7F, 0xB8, 0xFF]].tolist() == [0.5, 0.5625, 224, 0, 0.5, 240]
    assert affine_steps(-1.0, 0.1, 20, 15).dtype == np.float32
    steps = [np.float32(-1) + np.float32(0.1) * np.float32(i) + np.float32(15) for i in range(21)]
    assert affine_steps(-1.0, 0.1, 20, 15).tolist() == steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_beyond_float16_is_found(kind):
    x = np.random.default_rng(12).standard_normal((2, 256)).astype(np.float32)
    assert ggml.overflowed(ggml.encode(x, precision(kind)), precision(kind)) == ""
    x[1] = np.where(np.arange(256) % 2, np.float32(1e10), np.float32(-1e10))
    found = ggml.overflowed(ggml.encode(x, precision(kind)), precision(kind))
    assert found == ("" if kind in ("MXFP4", "NVFP4") else "scale d")


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_alone_is_encoded_as_it_is_among_others(kind):
    """numpy sums a single column in another order; ggml does not."""
    rng, size = np.random.default_rng(7), ggml.TYPES[kind].SIZE
    x = rng.standard_normal((24, size)).astype(np.float32)
    importances = [None, *([rng.standard_normal(size).astype(np.float32) ** 2] if kind in WEIGHED else [])]
    for importance in importances:
        together = ggml.encode(x, precision(kind), importance)["blocks"]
        alone = [ggml.encode(x[i : i + 1], precision(kind), importance)["blocks"][0] for i in range(len(x))]
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("kind", "block", "expected"),
    [("Q5_K", 4, "992c7f293c2f3fc2f32d80ef52e1b1ff"), ("Q4_K", 2, "981dfd28f5dae5ff80d3dbef6575eef4")],
)
def test_negative_scales_are_cut_off_where_c_cuts_them_off(kind, block, expected):
    """With most columns at importance 0 a scale may come out negative, whose code wraps: d, dmin and the scales.

    The bytes are those of libggml of llama-cpp-python 0.3.36.
    """
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 256)).astype(np.float32)
    importance = (rng.standard_normal(256) ** 2 * (rng.random(256) < 0.1)).astype(np.float32)
    assert ggml.encode(x, precision(kind), importance)["blocks"][block][:16].tobytes().hex() == expected
