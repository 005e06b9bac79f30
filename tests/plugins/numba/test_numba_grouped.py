"""MLX's, OpenVINO's and ONNX Runtime's integers by kernel: every bit of every part as in the reference."""

import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgekit
import edgekit_numba
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit_numba import encoders, grouped_encoders

_spec = importlib.util.spec_from_file_location("numba_kernels", Path(__file__).with_name("test_numba_kernels.py"))
kernels = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kernels)
draw, DISTRIBUTIONS = kernels.draw, kernels.DISTRIBUTIONS

ALL = pytest.mark.parametrize("name", edgekit_numba.GROUPED)
MLX = [name for name in edgekit_numba.GROUPED if name.startswith("mlx")]


def encoder(name):
    return getattr(grouped_encoders, grouped_encoders.attribute(name))


def assert_same(name, x):
    precision = find_precision(name)
    ours, theirs = encoder(name).encode(x), reference(precision).encode(x, precision)
    assert ours.keys() == theirs.keys()
    for part in theirs:
        assert (ours[part].dtype, ours[part].shape) == (theirs[part].dtype, theirs[part].shape), part
        left, right = (np.atleast_1d(parts[part]).view(np.uint8) for parts in (ours, theirs))
        assert np.array_equal(left, right), f"{name}: {part} differs in {(left != right).sum()} bytes"


@ALL
def test_parts_are_the_references(name):
    for seed, distribution in enumerate(DISTRIBUTIONS):
        assert_same(name, draw(distribution, seed, (7, 768)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", [*MLX, "onnx:int4-sym-g32"])
def test_sources_of_16_bits(name, dtype):
    for distribution in ("normal", "halves", "float16 subnormal", "far from zero"):
        assert_same(name, draw(distribution, 1, (5, 768)).astype(dtype))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(edgekit_numba.GROUPED),
    distribution=st.sampled_from(list(DISTRIBUTIONS)),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 3),
)
def test_any_shape_and_seed(name, distribution, seed, rows, blocks):
    assert_same(name, draw(distribution, seed, (rows, 256 * blocks)))


@pytest.mark.parametrize("name", [name for name in MLX if name.startswith("mlx:int1-")])
def test_one_bit_keeps_the_sign_of_the_first_zero(name):
    """The smallest value of every group is a zero; groups have none, one or several, of both signs, anywhere."""
    rng = np.random.default_rng(8)
    x = rng.choice([0.0, -0.0, 1.0, 2.0], (256, 256), p=[0.01, 0.01, 0.49, 0.49]).astype(np.float32)
    size = find_precision(name).block
    first = x.reshape(-1, size)[np.arange(x.size // size), (x.reshape(-1, size) == 0).argmax(axis=1)]
    assert {(v, np.signbit(v)) for v in first.tolist()} >= {(0.0, True), (0.0, False), (1.0, False)}
    assert_same(name, x)


@pytest.mark.parametrize("cols", [100, 48, 1])
@pytest.mark.parametrize("name", ["openvino:int8-asym-channel", "onnx:int4-asym-g32"])
def test_rows_that_do_not_fit_the_kernel(name, cols):
    assert_same(name, np.random.default_rng(2).standard_normal((5, cols)).astype(np.float32))


@ALL
def test_ordinary_groups_are_the_kernels_own_work(name, monkeypatch):
    x, precision = draw("normal", 3, (5, 512)), find_precision(name)
    expected = reference(precision).encode(x, precision)
    monkeypatch.setattr(grouped_encoders, "reference", None)
    found = encoder(name).encode(x)
    assert all(np.array_equal(found[part], expected[part]) for part in expected)


@pytest.mark.parametrize("name", ["mlx:int4-g64", "openvino:int4-asym-g32", "onnx:int8-asym-g128"])
def test_any_number_of_threads_gives_the_same_bytes(name, monkeypatch):
    x = draw("student t", 4, (33, 1024))
    monkeypatch.setattr(encoders, "PART", 4096)
    for threads in ("1", "3"):
        monkeypatch.setenv("EDGEKIT_NUMBA_THREADS", threads)
        assert_same(name, x)


@ALL
def test_it_is_the_default(name):
    assert edgekit.encode(draw("normal", 5, (2, 256)), name).backend == "numba"


@ALL
def test_it_vouches_for_what_is_finite_and_not_huge_and_for_nothing_else(name):
    for distribution in ("normal", "student t", "zeros of both signs", "halves"):
        x = draw(distribution, 6, (3, 512))
        ours, checked = encoder(name).encode(x), encoder(name).encode_checked(x)
        assert all(np.array_equal(ours[part], checked[part]) for part in ours)
    for bad in (np.nan, -np.inf, 65505.0, 3e38):
        x = draw("normal", 7, (3, 512))
        x[1, 300] = bad
        assert encoder(name).encode_checked(x) is None
