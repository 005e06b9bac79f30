"""The kernels against the numpy reference: every byte, for whatever is finite; and what they leave to it."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgekit
import edgekit_numba
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit.reference.ggml import TYPES
from edgekit_numba import encoders

KINDS = edgekit_numba.KINDS
WEIGHED = [kind for kind in KINDS if TYPES[kind].IMPORTANCE != "unused"]
SHAPE = (3, 1792)  # 21 super-blocks: a whole group of lanes and a rest, groups that span rows

DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student t": lambda rng, shape: rng.standard_t(2, shape),
    "constant": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "constant sub-blocks": lambda rng, shape: _repeated(rng, shape, 16),
    "zeros of both signs": lambda rng, shape: np.where(rng.random(shape) < 0.5, 0.0, -0.0),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * rng.choice([0.0, -0.0, 1.0], shape, p=[0.4, 0.4, 0.2]),
    "zero sub-blocks": lambda rng, shape: rng.standard_normal(shape) * (_repeated(rng, shape, 16) > 0),
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-40,
    "smallest normal": lambda rng, shape: rng.standard_normal(shape) * 1e-37,
    "float16 subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-6,
    "huge": lambda rng, shape: rng.standard_normal(shape) * 3e37,
    "squares overflow": lambda rng, shape: rng.standard_normal(shape) * 1e19,
    "float16 scales overflow": lambda rng, shape: rng.standard_normal(shape) * 1e6,
    "all positive": lambda rng, shape: np.abs(rng.standard_normal(shape)) + 0.01,
    "all negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)) - 0.01,
    "far from zero": lambda rng, shape: rng.standard_normal(shape) - 9,
    "halves": lambda rng, shape: rng.integers(-16, 17, shape) / 2,
    "positive halves": lambda rng, shape: rng.integers(0, 31, shape) / 2,
    "quarters": lambda rng, shape: rng.integers(-8, 9, shape) / 4,
    "ternary": lambda rng, shape: rng.integers(-1, 2, shape),
    "all magnitudes": lambda rng, shape: rng.standard_normal(shape) * np.exp2(30 * _repeated(rng, shape, 16)),
    "outliers": lambda rng, shape: rng.standard_normal(shape) * np.where(rng.random(shape) < 0.02, 1e30, 1),
    "bit patterns": lambda rng, shape: _finite(rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)),
}


def _repeated(rng, shape, size):
    return np.repeat(rng.standard_normal((shape[0], shape[1] // size)), size, axis=1)


def _finite(x):
    return np.where(np.isfinite(x), x, np.float32(1))


def draw(name, seed, shape=SHAPE):
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(DISTRIBUTIONS[name](np.random.default_rng(seed), shape).astype(np.float32))


def importance(seed, cols, silent=0.0):
    """Mean squared activations, some columns of which never fired."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(cols) < silent, 0, rng.standard_normal(cols) ** 2).astype(np.float32)


def assert_same(kind, x, weights=None):
    precision = find_precision(f"ggml:{kind}")
    ours = getattr(encoders, kind).encode(x, weights)["blocks"]
    theirs = reference(precision).encode(x, precision, weights)["blocks"]
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    differing = (ours != theirs).reshape(-1, TYPES[kind].LAYOUT.itemsize).any(axis=1)
    assert not differing.any(), f"{kind}: {differing.sum()} of {differing.size} blocks differ"


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_the_references(kind, name):
    assert_same(kind, draw(name, 1))


@pytest.mark.parametrize("kind", WEIGHED)
def test_bytes_with_an_importance_matrix_are_the_references(kind):
    for seed, name in enumerate(DISTRIBUTIONS):
        assert_same(kind, draw(name, seed, (2, 1280)), importance(seed, 1280, silent=(0, 0.5, 0.95)[seed % 3]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(list(DISTRIBUTIONS)),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 5),
    weigh=st.booleans(),
)
def test_any_shape_and_seed(kind, name, seed, rows, blocks, weigh):
    x = draw(name, seed, (rows, 256 * blocks))
    assert_same(kind, x, importance(seed, 256 * blocks, 0.2) if weigh else None)


@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_bits(kind):
    for seed in range(3):
        assert_same(kind, draw("bit patterns", seed, (16, 512)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_sources_of_16_bits_are_widened(kind, dtype, monkeypatch):
    monkeypatch.setattr(encoders, "PIECE", 8192)
    rng, precision = np.random.default_rng(9), find_precision(f"ggml:{kind}")
    x = (rng.standard_normal((37, 768)) * 10.0 ** rng.integers(-7, 2, (37, 1))).astype(dtype)
    x[3, 5] = np.inf
    weighed = TYPES[kind].IMPORTANCE != "unused"
    for weights in (None, importance(3, 768)) if weighed else (None,):
        wide = x.astype(np.float32)
        expected = reference(precision).encode(wide, precision, weights)["blocks"]
        assert np.array_equal(getattr(encoders, kind).encode(x, weights)["blocks"], expected)
        assert getattr(encoders, kind).encode_checked(x, weights) is None
        for rows in (slice(0, 3), slice(4, 37)):
            expected = reference(precision).encode(wide[rows], precision, weights)["blocks"]
            assert np.array_equal(edgekit.encode(x[rows], precision, importance=weights).parts["blocks"], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits_is_widened_exactly(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(-1, 32)
    ours = encoders.widened(every, np.empty(every.shape, np.float32))
    number = ~np.isnan(every.astype(np.float32))
    assert np.array_equal(np.isnan(ours), ~number)
    assert np.array_equal(ours[number].view(np.uint32), every.astype(np.float32)[number].view(np.uint32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_goes_to_the_reference(kind, bad):
    x = draw("normal", 5, (7, 512))
    x[2, 300] = bad
    assert_same(kind, x)
    if kind in WEIGHED:
        assert_same(kind, x, importance(5, 512))


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_blocks_are_the_kernels_own_work(kind, monkeypatch):
    x = draw("normal", 6, (5, 1024))
    expected = reference(find_precision(f"ggml:{kind}")).encode(x, find_precision(f"ggml:{kind}"))["blocks"]
    monkeypatch.setattr(encoders, "reference", None)
    assert np.array_equal(getattr(encoders, kind).encode(x)["blocks"], expected)


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_1", "Q8_0"])
def test_any_number_of_threads_and_parts_gives_the_same_bytes(kind, threads, monkeypatch):
    x, weights = draw("student t", 7, (11, 1792)), importance(7, 1792)
    expected = getattr(encoders, kind).encode(x, weights)["blocks"]
    monkeypatch.setenv("EDGEKIT_NUMBA_THREADS", threads)
    monkeypatch.setattr(encoders, "PART", 8192)
    assert np.array_equal(getattr(encoders, kind).encode(x, weights)["blocks"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent_and_the_input_is_only_read(kind):
    x, weights = draw("normal", 8, (9, 768)), importance(8, 768)
    x.flags.writeable = False
    whole = getattr(encoders, kind).encode(x, weights)["blocks"]
    for row in range(9):
        alone = getattr(encoders, kind).encode(np.ascontiguousarray(x[row : row + 1]), weights)["blocks"]
        assert np.array_equal(alone[0], whole[row])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_default(kind):
    encoded = edgekit.encode(draw("normal", 9, (2, 256)), f"ggml:{kind}")
    assert encoded.backend == "numba"


def test_mxfp4_exponents_just_below_powers_of_two():
    bits = (np.arange(1, 255)[:, None] << 23) + np.arange(-60, 4)
    largest = np.r_[bits.ravel(), 0x7F7FFFFF - np.arange(200)].astype(np.uint32).view(np.float32)
    x = np.random.default_rng(10).uniform(-1, 1, (largest.size, 32)) * largest[:, None].astype(np.float64)
    x[:, 0] = largest
    assert_same("MXFP4", x.astype(np.float32))


@pytest.mark.parametrize("kind", ["IQ4_NL", "IQ4_XS"])
def test_uneven_values_and_their_midpoints(kind):
    rng = np.random.default_rng(11)
    values = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    grid = np.r_[values, (values[1:] + values[:-1]) / 2]
    scale = np.exp2(rng.integers(-10, 10, (100, 1))) * rng.choice([1, 1, 3, 1.1], (100, 1))
    x = rng.choice(grid, (100, 256)) * scale
    x[:, ::32] = 127 * scale * rng.choice([-1, 1], (100, 8))
    assert_same(kind, x.astype(np.float32))


def assert_same_values(kind, blocks, shape):
    precision, parts = find_precision(f"ggml:{kind}"), {"blocks": blocks}
    ours = getattr(encoders, kind).decode(parts, shape)
    theirs = reference(precision).decode(parts, precision, shape)
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{kind}: {(~same).sum()} of {same.size} values differ"


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_decode_as_in_the_reference(kind):
    size, width = TYPES[kind].SIZE, TYPES[kind].LAYOUT.itemsize
    blocks = np.random.default_rng(12).integers(0, 256, (37, 3 * width)).astype(np.uint8)
    assert_same_values(kind, blocks, (37, 3 * size))


@pytest.mark.parametrize("kind", KINDS)
def test_decode_is_the_default_and_gives_the_references_values(kind, monkeypatch):
    monkeypatch.setattr(encoders, "PART", 1024)
    encoded = edgekit.encode(draw("student t", 13, (3, 1280)), f"ggml:{kind}")
    assert np.array_equal(edgekit.decode(encoded), encoded.dequantize())
    assert np.array_equal(edgekit.decode(encoded, backend="reference"), encoded.dequantize())


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_vouches_for_what_is_finite_and_not_huge_and_for_nothing_else(kind, weigh):
    encoder, weights = getattr(encoders, kind), importance(14, 1792) if weigh else None
    for name in ("normal", "student t", "zeros of both signs", "halves", "float16 subnormal"):
        x = draw(name, 14)
        assert np.array_equal(encoder.encode_checked(x, weights)["blocks"], encoder.encode(x, weights)["blocks"])
    for bad in (np.nan, np.inf, -np.inf, 65505.0, -65536.0, 3e38):
        for place in ((0, 0), (1, 777), (2, 1791)):
            x = draw("normal", 15)
            x[place] = bad
            assert encoder.encode_checked(x, weights) is None
    assert encoder.encode_checked(np.full(SHAPE, 65504, np.float32), weights) is not None


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q4_1", "Q5_1"])
def test_ties_between_the_signs_go_to_the_first(kind):
    rng = np.random.default_rng(16)
    x = rng.choice(np.array([-2, -1, -0.0, 0.0, 1, 2], np.float32), (400, 256), p=[0.05, 0.2, 0.25, 0.25, 0.2, 0.05])
    x[::5] = np.abs(x[::5])
    x[1::5] = -np.abs(x[1::5])
    x[2::5] *= rng.choice(np.array([0.0, -0.0, 1], np.float32), (80, 256), p=[0.49, 0.49, 0.02])
    assert_same(kind, x)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 47])
def test_the_power_of_rows_is_summed_in_order(rows):
    x = draw("student t", 17, (rows, 96))
    total = np.zeros(rows, np.float32)
    for column in x.T:
        total += column * column
    assert np.array_equal(encoders.row_power(x), total / np.float32(96))
