"""The products of rounding with error feedback: numpy's bits, whatever the shape."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.errors import UsageError
from edgekit.pipeline import _feedback
from edgekit.pipeline.rounding import _kernels as kernels
from edgekit.pipeline.rounding._matrix import Metric, round_matrix
from edgekit_numba import accumulating, feeding, products, scaling
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
    chosen = attrs.asdict(_feedback.fastest(), recurse=False)
    assert chosen.pop("accumulate") is accumulating.accumulate
    steps = {name: getattr(feeding, name) for name in ("multiply", "exponential", "feed", "descend", "substitute")}
    between = {
        name: getattr(scaling, name) for name in ("weigh", "largest", "narrow", "turn", "units", "scale", "totals")
    }
    assert chosen == steps | between
    assert {e.name for e in products.emitters()} == {"product_float32", "product_float64"}


@pytest.mark.parametrize(("n", "m", "k"), [(8, 32, 128), (1, 1, 2), (13, 70, 512), (100, 33, 1000), (40, 96, 130)])
def test_integer_products_have_the_bits_of_numpy(n, m, k):
    random = np.random.RandomState(n)
    a, b = (random.randint(-kernels.MOST, kernels.MOST + 1, (rows, k)).astype(np.int16) for rows in (m, n))
    out = random.standard_normal((n, m + 3)).astype(np.float32)[:, 1 : m + 1]
    expected = out.copy()
    kernels.multiply(expected, b, a)
    feeding.multiply(out, b, a)
    np.testing.assert_array_equal(out, expected)


def test_the_largest_integers_do_not_overflow():
    b, a = np.full((8, 256), kernels.MOST, np.int16), np.full((32, 256), -kernels.MOST, np.int16)
    expected, out = (np.zeros((8, 32), np.float32) for _ in range(2))
    kernels.multiply(expected, b, a)
    feeding.multiply(out, b, a)
    np.testing.assert_array_equal(out, expected)


def test_products_of_other_types_are_refused():
    with pytest.raises(
        UsageError, match=r"a product of int16 \(1, 3\) and int16 \(1, 3\) in float32; give int16 with an"
    ):
        feeding.multiply(np.zeros((1, 1), np.float32), *np.ones((2, 1, 3), np.int16))
    with pytest.raises(UsageError, match=r"powers of float64 with strides \(8,\); give contiguous float32"):
        feeding.exponential(np.zeros(3))


def test_powers_have_the_bits_of_numpy():
    special = [-np.inf, np.inf, np.nan, -87, 88, 0, -0.0, 1e-40, -1e-40]
    x = np.concatenate([np.random.RandomState(1).standard_normal(100_003) * 30, special]).astype(np.float32)
    expected, found = x.copy(), x.copy()
    with np.errstate(all="ignore"):
        kernels.exponential(expected)
    feeding.exponential(found)
    np.testing.assert_array_equal(found, expected)


def _odd_numbers(rows, cols):
    """Values, in a wider array, of which a row and a column hold what is no number, or infinite."""
    x = np.random.RandomState(rows * cols).standard_normal((rows, cols + 5)).astype(np.float32)[:, 2 : cols + 2]
    x[rows // 2, cols // 2], x[0, 0] = np.nan, -np.inf
    x[:, cols // 3] *= np.float32(1e30)
    return x


PLANES = [(1, 1), (3, 16), (31, 17), (64, 96), (65, 40), (256, 33)]


@pytest.mark.parametrize("shape", PLANES)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_largest_magnitudes_are_those_of_numpy(shape, axis):
    for x in (_odd_numbers(*shape), np.zeros(shape, np.float32), -np.ones(shape, np.float32)):
        np.testing.assert_array_equal(scaling.largest(x, axis), kernels.largest(x, axis))
    assert np.array_equal(kernels.largest(np.array([[1, -3], [-2, 0.5]], np.float32), axis), [[2, 3], [3, 2]][axis])


def _units(count):
    inverse = np.exp(np.random.RandomState(count).standard_normal(count)).astype(np.float32) * 100
    inverse[::4] = 0
    return inverse


@pytest.mark.parametrize("shape", PLANES)
def test_integers_are_those_of_numpy(shape):
    x = np.random.RandomState(3).standard_normal((shape[0], shape[1] + 4)).astype(np.float32)[:, : shape[1]]
    x.reshape(-1)[::7] = 0.5  # with a unit of 1, midway between two integers
    of_rows, of_columns = _units(shape[0]), _units(shape[1])
    of_rows[-1:], of_columns[-1:] = 1, 1
    x[of_rows == 0, of_columns.argmin()] = np.inf
    expected, found = (np.empty((shape[0], shape[1] + 3), np.int16)[:, : shape[1]] for _ in range(2))
    kernels.narrow(expected, x, of_rows)
    scaling.narrow(found, x, of_rows)
    np.testing.assert_array_equal(found, expected)
    x[~np.isfinite(x)] = 0
    x[0, of_columns == 0] = np.nan
    expected, found = (np.empty((shape[1], 200), np.int32)[:, : (shape[0] + 1) // 2] for _ in range(2))
    kernels.turn(expected, x, of_columns)
    scaling.turn(found, x, of_columns)
    np.testing.assert_array_equal(found, expected)


def test_a_turned_word_holds_two_rows():
    x = np.array([[1, -2], [3, 4], [5, 6]], np.float32)
    for turn in (kernels.turn, scaling.turn):
        words = np.empty((2, 2), np.int32)
        turn(words, x, np.array([1, 2], np.float32))
        assert words.view(np.int16).tolist() == [[1, 3, 5, 0], [-4, 8, 12, 0]]


@pytest.mark.parametrize("shape", PLANES)
@pytest.mark.parametrize("start", [0, 1, 2])  # at 1, a word of two integers begins within another one
def test_integers_that_are_cut_off_are_those_of_numpy(shape, start):
    rows, cols = shape
    x = np.random.RandomState(9).standard_normal((rows, cols + 3)).astype(np.float32)[:, :cols]
    x.reshape(-1)[::5] = 0.5  # with a factor and a unit of 1, midway between two integers
    factor = np.exp(np.random.RandomState(rows).standard_normal(rows)).astype(np.float32)
    inverse = _units(cols) * 10
    factor[-1:], inverse[-1:] = 1, 1
    expected, found = (np.zeros((cols, rows + 7), np.int16) for _ in range(2))
    kernels.units(expected[:, start : start + rows], x, factor, inverse)
    scaling.units(found[:, start : start + rows], x, factor, inverse)
    np.testing.assert_array_equal(found, expected)
    if cols > 16:
        assert np.abs(found).max() == kernels.MOST


@pytest.mark.parametrize("shape", PLANES)
def test_sums_of_columns_have_the_bits_of_numpy(shape):
    random = np.random.RandomState(11)
    x, y = (random.standard_normal((shape[0], shape[1] + 3)).astype(np.float32)[:, : shape[1]] for _ in range(2))
    x[:, ::3] *= np.float32(1e15)
    for factors in (y, None):
        found = scaling.totals(x, factors)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, kernels.totals(x, factors))
    np.testing.assert_allclose(kernels.totals(x, y), (x.astype(np.float64) * y).sum(axis=0), rtol=1e-3, atol=1e10)
    small = np.arange(1, 9, dtype=np.float32).reshape(2, 2, 2)
    assert kernels.totals(*small).tolist() == [26, 44]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (8, 17), (32, 288), (31, 8)])
def test_solved_equations_have_the_bits_of_numpy(n, m):
    random = np.random.RandomState(n + m)
    factor = random.standard_normal((n, n)).astype(np.float32) + np.eye(n, dtype=np.float32) * 9
    values = random.standard_normal((n, m + 1)).astype(np.float32)
    for order, system in ((slice(None), factor), (slice(None, None, -1), factor.T[::-1, ::-1])):
        expected, found = values.copy()[:, :m], values.copy()[:, :m]
        kernels.substitute(expected[order], system)
        feeding.substitute(found[order], system)
        np.testing.assert_array_equal(found, expected)
        upper = np.triu(system.astype(np.float64))
        np.testing.assert_allclose(upper.T @ expected[order], values[order, :m], atol=1e-4)


@pytest.mark.parametrize("shape", PLANES)
def test_scaled_products_have_the_bits_of_numpy(shape):
    random = np.random.RandomState(5)
    wide = random.standard_normal((shape[0], shape[1] + 3)).astype(np.float32)
    of_rows, of_columns = (random.standard_normal(count).astype(np.float32) for count in shape)
    expected, found = wide[:, : shape[1]].copy(), wide.copy()[:, : shape[1]]
    kernels.scale(expected, of_rows, of_columns)
    scaling.scale(found, of_rows, of_columns)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (512, 384), (130, 37)])
def test_the_weights_of_a_softmax_have_the_bits_of_numpy(shape):
    scores = np.random.RandomState(7).standard_normal(shape).astype(np.float32) * 20
    scores[1:][np.random.RandomState(8).random_sample((shape[0] - 1, shape[1])) < 0.3] = -np.inf
    expected, found = scores.copy(), scores.copy()
    sums = kernels.weigh(expected), scaling.weigh(found)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(sums[1], sums[0])
    np.testing.assert_allclose(sums[0], np.exp(scores.astype(np.float64) - scores.max(axis=0)).sum(axis=0), rtol=1e-5)


def test_other_types_and_orders_are_refused():
    with pytest.raises(UsageError, match=r"float64 \(2, 2\) with strides \(16, 8\); give float32, and int16"):
        scaling.largest(np.zeros((2, 2)), 0)
    with pytest.raises(UsageError, match="whose rows are contiguous"):
        scaling.scale(np.zeros((4, 4), np.float32).T, np.ones(4, np.float32), np.ones(4, np.float32))


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize(
    "name",
    [
        *("ggml:Q4_0", "ggml:Q4_K", "mlx:int3-g64", "onnx:int4-asym-g32", "affine:int8-sym-tensor"),
        *("ggml:IQ4_NL", "ggml:IQ4_XS", "openvino:nf4-g64", "mlx:mxfp4", "ggml:Q1_0"),  # of uneven levels
        "mlx:mxfp8",  # of more than kernels take
    ],
)
def test_steps_have_the_bits_of_numpy(name, rows):
    random = np.random.RandomState(rows)
    weights, inputs = (random.standard_normal(shape).astype(np.float32) for shape in ((rows, 256), (400, 256)))
    inputs[:, 1:] += inputs[:, :1] * np.exp(random.standard_normal(255)).astype(np.float32)
    metric = Metric.of(inputs.T @ inputs / np.float32(400))
    tensor = edgekit.encode(weights, name)
    plain, fast = (round_matrix(weights, tensor, metric, kernels=k) for k in (kernels.NUMPY, _feedback.fastest()))
    for part, values in plain.parts.items():
        np.testing.assert_array_equal(fast.parts[part], values)


def test_a_model_gets_the_bytes_of_numpy(tmp_path, monkeypatch):
    tokens = np.array(edgekit.open(sample.path()).tokenizer.encode(sample.heldout_text()[:1200]))
    calibration = edgekit.calibrate(sample.path(), tokens, context=128)
    written = []
    for name, chosen in (("fast", _feedback.fastest()), ("plain", kernels.NUMPY)):
        monkeypatch.setattr(_feedback, "fastest", lambda chosen=chosen: chosen)
        made = edgekit.quantize(sample.path(), "ggml:Q4_K", to=tmp_path / name, calibration=calibration)
        written.append([file.read_bytes() for file in made.files if file.suffix == ".safetensors"])
    assert written[0] == written[1]
