"""The products of rounding with error feedback: numpy's bits, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.errors import UsageError
from edgekit.pipeline import _feedback
from edgekit.pipeline.rounding import _kernels as kernels
from edgekit_numba import accumulating, products
from edgekit_numba.accumulating import accumulate

SHAPES = [(32, 64, 96), (1, 1, 1), (3, 7, 1100), (33, 100, 5), (8, 31, 64), (17, 257, 2)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m", "k"), SHAPES)
def test_products_have_the_bits_of_numpy(dtype, n, m, k):
    random = np.random.RandomState(n)
    out = random.standard_normal((n, m + 3)).astype(dtype)[:, 1 : m + 1]
    b = random.standard_normal((n + 2, k)).astype(dtype).T[:, 1 : n + 1]
    a = random.standard_normal((k, m + 1)).astype(dtype)[:, 1:]
    expected = out.copy()
    kernels.accumulate(expected, b, a)
    accumulate(out, b, a)
    np.testing.assert_array_equal(out, expected)


def test_infinities_and_nan_have_the_bits_of_numpy():
    a, b = np.float32([[np.inf, -0.0, 1e38, np.nan]]), np.float32([[0, 1e38, -np.inf]])
    expected, out = (np.zeros((3, 4), np.float32) for _ in range(2))
    with np.errstate(all="ignore"):
        kernels.accumulate(expected, b, a)
    accumulate(out, b, a)
    np.testing.assert_array_equal(out, expected)


def test_no_products_change_nothing():
    out = np.ones((2, 3), np.float32)
    accumulate(out, np.empty((0, 2), np.float32), np.empty((0, 3), np.float32))
    assert (out == 1).all()


def test_other_types_are_refused():
    out = np.zeros((1, 1), np.float32)
    with pytest.raises(
        UsageError, match="a product of float64 and float32 in float32; give float32, or float64, in all"
    ):
        accumulate(out, np.zeros((1, 1)), np.zeros((1, 1), np.float32))


def test_it_is_what_rounding_uses():
    assert _feedback.fastest() is accumulating.accumulate
    assert {e.name for e in products.emitters()} == {"product_float32", "product_float64"}


def test_a_model_gets_the_bytes_of_numpy(tmp_path, monkeypatch):
    tokens = np.array(edgekit.open(sample.path()).tokenizer.encode(sample.heldout_text()[:1200]))
    calibration = edgekit.calibrate(sample.path(), tokens, context=128)
    written = []
    for name, kernel in (("fast", accumulate), ("plain", kernels.accumulate)):
        monkeypatch.setattr(_feedback, "fastest", lambda kernel=kernel: kernel)
        made = edgekit.quantize(sample.path(), "ggml:Q4_K", to=tmp_path / name, calibration=calibration)
        written.append([file.read_bytes() for file in made.files if file.suffix == ".safetensors"])
    assert written[0] == written[1]
