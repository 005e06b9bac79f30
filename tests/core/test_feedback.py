"""Rounding with error feedback: the arithmetic, the loss, and whole models."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import encode, sample
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.bridges import choices, levels
from edgekit.errors import NonFiniteError, UsageError
from edgekit.evaluation import Baseline, evaluate
from edgekit.files.digests import sha256
from edgekit.pipeline._feedback import row_order
from edgekit.pipeline.rounding import _matrix as matrices
from edgekit.pipeline.rounding import _walk as walks
from edgekit.pipeline.rounding._factor import damped, decreasing, spread, upper_factor
from edgekit.pipeline.rounding._feedback import Grid, feedback, improve
from edgekit.pipeline.rounding._integers import Integers, Scratch, mean_product, product
from edgekit.pipeline.rounding._kernels import MOST, NUMPY, accumulate, multiply
from edgekit.pipeline.rounding._matrix import Metric, round_matrix
from edgekit.pipeline.rounding._ordered import OrderedTransformer, exp, tanh, turns
from edgekit.pipeline.rounding._overlap import shared_with
from edgekit.pipeline.rounding._slopes import Slopes
from edgekit.testing.models import artifact_of, random_model, small_llama

RANDOM = np.random.RandomState(7)
ROWS, COLS = 24, 256
WEIGHTS = RANDOM.standard_normal((ROWS, COLS)).astype(np.float32)
#: Inputs whose columns go together, and differ in size, as those of a model do.
INPUTS = (RANDOM.standard_normal((600, 40)) @ RANDOM.standard_normal((40, COLS))) + RANDOM.standard_normal((600, COLS))
INPUTS = (INPUTS * np.exp(RANDOM.standard_normal(COLS))).astype(np.float32)
MOMENT = (INPUTS.T @ INPUTS / np.float32(600)).astype(np.float32)
FORMATS = [
    *("ggml:Q2_K", "ggml:Q3_K", "ggml:Q4_K", "ggml:Q5_K", "ggml:Q6_K", "ggml:Q4_0", "ggml:Q5_1", "ggml:Q8_0"),
    *("ggml:IQ4_NL", "ggml:IQ4_XS", "ggml:MXFP4", "ggml:NVFP4", "ggml:TQ2_0", "ggml:Q1_0"),
    *("mlx:int4-g64", "mlx:int3-g64", "mlx:mxfp4", "mlx:mxfp8", "mlx:nvfp4"),
    *("onnx:int4-sym-g32", "onnx:int4-asym-g32", "onnx:qdq_int4-asym-g32", "onnx:uint8-asym-channel"),
    *("openvino:int4-sym-g64", "openvino:int8-asym-channel", "openvino:int3-sym-g64", "openvino:nf4-g64"),
    *("openvino:fp4-g32", "openvino:fp8-channel", "openvino:mxfp4", "openvino:nvfp4"),
    *("olive:int4-asym-g32", "affine:int4-sym-g32", "affine:int4-asym-tensor", "affine:int1-asym-g32"),
]


GEMMA = config_from_hf(
    {
        "model_type": "gemma2",  # soft caps, windows and GELU besides what others have
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 50,
        "max_position_embeddings": 64,
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
    },
    "test",
)
SMALL_LLAMA = small_llama()


def loss(values, moment=MOMENT, weights=WEIGHTS):
    errors = (weights - values).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", errors, damped(moment).astype(np.float64), errors))


def test_products_are_added_one_after_the_other():
    out, b, a = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((3, 700), (5, 3), (5, 700)))
    expected = out.copy()
    for k in range(5):
        for i in range(3):
            expected[i] = expected[i] + b[k, i] * a[k]
    accumulate(out, b, a)
    np.testing.assert_array_equal(out, expected)


def test_the_factor_is_triangular_and_gives_the_moment():
    h = damped(MOMENT)
    factor = upper_factor(h)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor @ factor.T, h, rtol=0, atol=1e-12 * np.abs(h).max())


def test_errors_spread_as_by_the_inverse():
    """GPTQ's form, with the Cholesky factor of the inverse: column k's error, divided by its pivot, times its row."""
    h = damped(MOMENT).astype(np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    targets, q = WEIGHTS.astype(np.float64).copy(), np.empty_like(WEIGHTS)
    for k in range(COLS):
        q[:, k] = np.rint(targets[:, k])
        targets[:, k:] -= np.outer((targets[:, k] - q[:, k]) / upper[k, k], upper[k, k:])
    grid = Grid(np.arange(-128, 128, dtype=np.float32), COLS, *np.ones((2, 1, ROWS), np.float32), None, None, True)
    ours = feedback(WEIGHTS.T.copy(), grid, spread(upper_factor(damped(MOMENT))), np.arange(COLS))
    # float32 decides some codes otherwise that lie in the middle, and what follows them: the loss is the same.
    assert (ours.T.astype(int) - 128 == q).mean() > 0.9
    assert loss(ours.T.astype(np.float32) - 128) == pytest.approx(loss(q), rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_feedback_loses_less_than_the_encoder(name):
    tensor = encode(WEIGHTS, name, importance=np.diag(MOMENT).copy(), backend="reference")
    rounded = round_matrix(WEIGHTS, tensor, Metric.of(MOMENT))
    assert rounded.nbytes == tensor.nbytes
    assert loss(rounded.dequantize()) < 0.8 * loss(tensor.dequantize())


@pytest.mark.parametrize("name", ["ggml:Q4_K", "ggml:Q4_0", "mlx:int4-g64", "openvino:nf4-g64"])
def test_sweeps_and_fitted_scales_never_lose(name):
    tensor, metric = encode(WEIGHTS, name), Metric.of(MOMENT)
    grid, weights = Grid.of(levels(tensor)), WEIGHTS.T.copy()
    codes = feedback(weights, grid, metric.spread, metric.order)
    losses = [loss(grid.decoded(codes).T)]
    fit = {"choices": choices(tensor), "rows": slice(0, ROWS)}
    for how in ({}, {"sweep": False, **fit}, fit) * 3:
        improve(weights, grid, metric.h, metric.correlation, codes, **how)
        losses.append(loss(grid.decoded(codes).T))
    assert losses[-1] < losses[0]
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(losses))


def test_slopes_of_integers_are_those_of_floats():
    metric, errors = Metric.of(MOMENT), RANDOM.standard_normal((COLS, ROWS)).astype(np.float32)
    slopes = Slopes.of(metric.correlation, errors, NUMPY)
    errors[32:64] *= 2
    slopes.change(slice(32, 64), errors)
    expected = metric.h.astype(np.float64) @ errors
    # A unit of the errors is 1 in 2047 of a row's largest, one of a correlation 1 in 4095.
    scale = np.sqrt(np.diag(metric.h))[:, None] * np.abs(errors * np.sqrt(np.diag(metric.h))[:, None]).max(axis=0)
    found = np.concatenate([slopes(slice(start, start + 64)) for start in range(0, COLS, 64)])
    assert np.abs((found - expected) / scale).max() < math.sqrt(COLS) / 2047


def test_bytes_depend_on_no_thread_and_no_chunk(monkeypatch):
    tensor, metric = encode(WEIGHTS, "ggml:Q4_K"), Metric.of(MOMENT)
    alone = round_matrix(WEIGHTS, tensor, metric).parts["blocks"]
    monkeypatch.setattr(matrices, "_FEW", -1.0)  # the number of rounds is a chunk's own
    whole = round_matrix(WEIGHTS, tensor, metric).parts["blocks"]
    monkeypatch.setattr(matrices, "ROWS", 5)
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(round_matrix(WEIGHTS, tensor, metric, pool=pool).parts["blocks"], whole)
    monkeypatch.undo()
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(round_matrix(WEIGHTS, tensor, metric, pool=pool).parts["blocks"], alone)


def test_solving_is_multiplying_by_the_inverse():
    metric = Metric.of(MOMENT)
    solved = metric.solve(WEIGHTS.T.copy())
    np.testing.assert_allclose(metric.h.astype(np.float64) @ solved, WEIGHTS.T, atol=2e-3)


def test_columns_that_are_never_used_are_rounded_to_nearest():
    moment = MOMENT.copy()
    dead = [3, 40, 41]
    moment[dead], moment[:, dead] = 0, 0
    tensor = encode(WEIGHTS, "ggml:Q4_0")
    rounded = round_matrix(WEIGHTS, tensor, Metric.of(moment))
    known = levels(rounded)
    scale = known.scale[:, np.array(dead) // 32]  # may be negative
    ends = known.table[0] * scale, known.table[-1] * scale
    inside = np.clip(WEIGHTS[:, dead], np.minimum(*ends), np.maximum(*ends))
    # Slopes have 13 bits: an error is known to 1/4094 of its row's largest (0.5009 of a level seen with columns 1, 2, 3 and 33).
    assert (np.abs(rounded.dequantize()[:, dead] - inside) <= np.abs(scale) * 0.503).all()


def test_broken_moments_are_refused():
    broken = MOMENT.copy()
    broken[2, 2] = np.nan
    with pytest.raises(NonFiniteError, match="the moment holds values that are not finite; calibrate on"):
        Metric.of(broken)
    with pytest.raises(NonFiniteError, match="the moment is not positive, however much is added"):
        upper_factor(-np.eye(4, dtype=np.float32))


def test_singular_moments_are_damped():
    one = INPUTS[:1]
    tensor = encode(WEIGHTS, "ggml:Q4_0")
    rounded = round_matrix(WEIGHTS, tensor, Metric.of((one.T @ one).astype(np.float32)))
    assert np.isfinite(rounded.dequantize()).all()


def test_columns_come_in_the_order_of_their_diagonal():
    assert decreasing(np.diag(np.float32([1, 5, 5, 0]))).tolist() == [1, 2, 0, 3]


def test_the_order_of_rows_is_found():
    order = RANDOM.permutation(ROWS)
    assert row_order(WEIGHTS, WEIGHTS) is None
    np.testing.assert_array_equal(row_order(WEIGHTS[order], WEIGHTS), order)
    with pytest.raises(UsageError, match="the target stores other values than the source has"):
        row_order(WEIGHTS + 1, WEIGHTS)


@pytest.fixture(scope="module")
def halves():
    """Token ids of the first and of the second half of the sample's text."""
    tokenizer, text = edgekit.open(sample.path()).tokenizer, sample.heldout_text()
    middle = len(text) // 2
    return [np.array(tokenizer.encode(part))[:2560] for part in (text[:middle], text[middle:])]


@pytest.fixture(scope="module")
def calibration(halves):
    return edgekit.calibrate(sample.path(), halves[0], context=256, holdout=0)


def test_a_model_diverges_less_at_the_same_bytes(tmp_path, halves, calibration):
    name = "affine:int4-sym-g32"
    near = edgekit.quantize(sample.path(), name, to=tmp_path / "near", calibration=calibration, rounding="nearest")
    fed = edgekit.quantize(sample.path(), name, to=tmp_path / "fed", calibration=calibration)
    baseline = Baseline(sample.path())
    losses = [evaluate(m, halves[1], baseline=baseline, context=256).kl_divergence for m in (near, fed)]
    assert near.tensor_nbytes == fed.tensor_nbytes
    assert losses[1] <= 0.45 * losses[0]
    assert fed.notes["rounding"] == "22 matrices rounded with error feedback on 2560 tokens"
    assert "rounding" not in near.notes
    assert fed.manifest.sources["calibration"] == calibration.digest
    assert near.manifest.calibration == fed.manifest.calibration == edgekit.open(tmp_path / "fed").manifest.calibration
    assert [round(shared_with(fed.manifest.calibration, half)) for half in halves] == [1, 0]


@pytest.mark.parametrize("precision", ["affine:int4-sym-g32", "mlx:int4-g64"])
def test_an_interrupted_run_goes_on_within_rounding(tmp_path, monkeypatch, precision):
    """MLX's scales have the source's type, bfloat16, which numpy does not know by itself."""
    tokens = np.array(edgekit.open(sample.path()).tokenizer.encode(sample.heldout_text()))[:512]
    calibration = edgekit.calibrate(sample.path(), tokens, context=128, holdout=0)
    name = "small"
    given = {"calibration": calibration, "allow_unquantized": True}

    def stop(done, total, label):
        if label == "layer 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        edgekit.quantize(sample.path(), precision, to=tmp_path / name, progress=stop, **given)
    assert re.match(r"15 rounded matrices are kept; the same command goes on from there", stopped.value.__notes__[0])
    rounded = []
    monkeypatch.setattr(walks, "round_matrix", lambda *args, **kw: rounded.append(1) or round_matrix(*args, **kw))
    again = edgekit.quantize(sample.path(), precision, to=tmp_path / name, **given)
    assert len(rounded) == 7
    whole = edgekit.quantize(sample.path(), precision, to=tmp_path / f"whole-{name}", **given)
    assert [sha256(file) for file in again.files] == [sha256(file) for file in whole.files]
    assert again.manifest.to_json() == whole.manifest.to_json()
    assert not [path for path in tmp_path.iterdir() if "rounding" in path.name]


def test_bad_arguments_are_refused(tmp_path, calibration):
    def quantize(**arguments):
        edgekit.quantize(sample.path(), "affine:int4-sym-g32", to=tmp_path / "out", **arguments)

    with pytest.raises(
        UsageError, match=re.escape("rounding with feedback needs a calibration; make one with edgekit")
    ):
        quantize(rounding="feedback")
    with pytest.raises(UsageError, match="rounding 'up'; choose nearest or feedback"):
        quantize(rounding="up", calibration=calibration)
    with pytest.raises(UsageError, match="a calibration has an importance of its own; give one of the two"):
        quantize(calibration=calibration, importance={})
    with pytest.raises(UsageError, match="it is of a model with other weights than"):
        quantize(calibration=attrs.evolve(calibration, model="0" * 64))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [GEMMA, SMALL_LLAMA], ids=["gemma2", "llama"])
def test_the_ordered_pass_computes_the_same(config, rounding):
    model, tokens = random_model(config), np.random.RandomState(3).randint(0, 50, (2, 40))
    expected, found = (kind(model).hidden(tokens) for kind in (Transformer, OrderedTransformer))
    # Operands have 13 bits with their sign, where those of float32 have 24 and a sign.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**12 * rounding(config, expected))


def test_the_exponential():
    x = np.linspace(-87, 88, 100_001).astype(np.float32)
    exact = np.exp(x[1:-1].astype(np.float64))
    assert (np.abs(exp(x)[1:-1] - exact) <= 2 * 2.0**-23 * exact).all()
    assert exp(np.float32([-np.inf, -200, 0])).tolist() == [0, 0, 1]
    np.testing.assert_allclose(tanh(x / 10), np.tanh(x / 10), atol=2.0**-22)


def test_integer_products_are_exact_at_their_largest():
    """The largest operands: 128 products nearly fill 32 bits, and each piece's sum is rounded once."""
    b, a = np.full((2, 300), MOST, np.int16), np.full((3, 300), -MOST, np.int16)
    out = np.ones((2, 3), np.float32)
    multiply(out, b, a)
    expected = np.float32(1)
    for columns in (128, 128, 44):
        expected += np.float32(-columns * MOST * MOST)
    assert (out == expected).all()


def test_products_of_integers_are_those_of_floats():
    """Each operand is rounded to half a unit, the largest of its row being 4095 of them."""
    x, w = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((70, 301), (33, 301)))
    with ThreadPoolExecutor(2) as pool:
        found = product(Integers.of_rows(x, NUMPY, pool), Integers.of_rows(w, NUMPY, pool), NUMPY, pool)
    assert np.array_equal(found, product(Integers.of_rows(x, NUMPY), Integers.of_rows(w, NUMPY), NUMPY))
    units = [np.abs(operand).max(axis=1) / MOST / 2 for operand in (x, w)]
    bound = np.outer(units[0], np.abs(w).sum(axis=1)) + np.outer(np.abs(x).sum(axis=1), units[1])
    assert (np.abs(found - x.astype(np.float64) @ w.T) <= 1.001 * bound + 301 * np.outer(*units)).all()


def test_rows_that_are_zero_or_not_finite():
    x = np.float32([[0, 0, 0], [1, np.inf, 2], [np.nan, 1, 1], [1e-38, 0, 1e-38], [3, -6, 1]])
    rows = Integers.of_rows(x, NUMPY)
    assert rows.values.shape == (5, 4)  # an even number of columns
    assert rows.values[4, :3].tolist() == [2048, -4095, 682]
    assert (rows.values[[0, 1, 2, 3]] == 0).all()
    found = product(rows, Integers.of_rows(np.ones((1, 3), np.float32), NUMPY), NUMPY)[:, 0]
    assert np.isnan(found).tolist() == [False, True, True, False, False]


def test_moments_are_symmetric():
    x = RANDOM.standard_normal((90, 300)).astype(np.float32)
    columns = Integers.of_columns(x, NUMPY)
    found = mean_product(columns, columns, 90, NUMPY)
    assert np.array_equal(found, found.T)
    assert np.array_equal(found, mean_product(columns, Integers.of_columns(x, NUMPY), 90, NUMPY))
    with ThreadPoolExecutor(3) as pool:
        turned = Integers.of_columns(x, NUMPY, pool)
        assert np.array_equal(found, mean_product(turned, turned, 90, NUMPY, pool))
    largest = np.abs(x).max()
    np.testing.assert_allclose(found, x.T.astype(np.float64) @ x / 90, atol=1.001 * largest**2 / MOST)


def test_memory_is_used_again_only_after_its_last_array():
    scratch, shape = Scratch(), (1 << 10, 1 << 10)
    first = scratch.array(shape, np.float32)
    part = first[3:5]
    address = first.ctypes.data
    second = scratch.array(shape, np.float32)
    del first
    third = scratch.array(shape, np.float32)
    assert not any(np.shares_memory(*pair) for pair in itertools.combinations((part, second, third), 2))
    del part
    again = scratch.array((1 << 11, 1 << 10), np.int16)  # of another type, but as large
    assert (again.shape, again.dtype, again.ctypes.data) == ((1 << 11, 1 << 10), np.int16, address)


def test_a_layer_leaves_nothing_to_the_output_matrix(tmp_path, monkeypatch):
    """The metric of a layer's last matrix, and the memory of its products, were kept: 1 GB for 1.1 billion weights."""
    (tmp_path / "model").write_bytes(b"")
    model, tokens = random_model(SMALL_LLAMA), np.random.RandomState(3).randint(0, 50, 400)
    calibration = edgekit.calibrate(artifact_of(model, tmp_path / "model"), tokens, context=40, holdout=0)
    walk = walks.Walk(
        model,
        calibration,
        {
            name: walks.Matrix(_four_bits)
            for name in model.tensors
            if name.endswith("weight") and "norm" not in name and name != walks.EMBEDDING
        },
    )
    made, alive = [], []

    def of(*given, **options):
        alive.append(sum(known() is not None for known in made))
        metric = Metric.of(*given, **options)
        made.append(weakref.ref(metric))
        return metric

    monkeypatch.setattr(walks, "Metric", SimpleNamespace(of=of))
    rounded = dict(walk.run())
    assert list(rounded)[-1] == walks.OUTPUT
    assert len(made) == 9
    assert alive[-1] == 0


def test_what_is_rounded_waits_in_the_file(tmp_path, monkeypatch):
    """All matrices were in memory until the last one was rounded: 600 MB for 1.1 billion weights."""
    source = sample.path()
    calibration = edgekit.calibrate(source, sample.heldout_text()[:2000], context=64, holdout=0)
    made, alive = [], []

    def rounded(*given, **options):
        alive.append(sum(known() is not None for known in made))
        tensor = round_matrix(*given, **options)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(walks, "round_matrix", rounded)
    edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "rounded", calibration=calibration)
    assert len(made) == 22  # of three layers, and the embedding
    assert max(alive) <= 8  # those of a layer, and the one that was written last


def _four_bits(rows, importance):
    return encode(rows, "affine:int4-asym-g32", importance=importance, backend="reference")


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
def test_columns_are_the_rows_of_the_transpose(count):
    x = RANDOM.standard_normal((count, 37)).astype(np.float32)
    columns, rows = Integers.of_columns(x, NUMPY), Integers.of_rows(x.T, NUMPY)
    np.testing.assert_array_equal(columns.values, rows.values)
    np.testing.assert_array_equal(columns.scale, rows.scale)


def test_sines_and_cosines():
    angle = np.linspace(0, 9000, 200_001).astype(np.float32)
    wide = angle.astype(np.float64)
    for found, exact in zip(turns(angle), (np.cos(wide), np.sin(wide)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=2.0**-24)


_ROUND = """
import hashlib, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import edgekit
from edgekit.pipeline.rounding import read_calibration
from edgekit.pipeline.rounding._walk import Matrix, Walk
from edgekit.testing.models import artifact_of, random_model, small_llama
calibration, digest = read_calibration(Path(sys.argv[1])), hashlib.sha256()
again = edgekit.calibrate(
    artifact_of(random_model(small_llama()), Path(sys.argv[3])), calibration.windows.reshape(-1), context=40, holdout=0
)
for name in calibration.inputs:
    digest.update(again.moment(name).tobytes())
def encode(rows, importance):
    return edgekit.encode(rows, "affine:int4-asym-g32", importance=importance, backend="reference")
matrices = {name: Matrix(encode) for shared in calibration.inputs.values() for name in shared}
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    for name, tensor in Walk(random_model(small_llama()), calibration, matrices, pool).run():
        for part in tensor.parts.values():
            digest.update(part.tobytes())
print(digest.hexdigest())
"""


def computes(kernels: str) -> bool:
    """Whether numpy survives a product with those kernels: OpenBLAS 0.3.34 (numpy 2.5.5) does not with Prescott's."""
    product = "import numpy as np; x = np.ones((512, 256), np.float32); x.T @ x"
    given = {**os.environ, "OPENBLAS_CORETYPE": kernels}
    return not subprocess.run([sys.executable, "-c", product], env=given, check=False).returncode


def test_the_bytes_are_the_same_on_every_processor(tmp_path):
    """Moments and codes, under the five sets of kernels that OpenBLAS has, and numpy without its own."""
    (tmp_path / "model").write_bytes(b"")
    tokens = np.random.RandomState(3).randint(0, 50, 400)
    artifact = artifact_of(random_model(SMALL_LLAMA), tmp_path / "model")
    edgekit.calibrate(artifact, tokens, context=40, holdout=0, to=tmp_path / "c.safetensors")
    kernels = list(filter(computes, ["Prescott", "Nehalem", "Sandybridge", "Haswell", "SkylakeX"]))
    settings = [{"OPENBLAS_CORETYPE": name, "OPENBLAS_NUM_THREADS": str(1 + k % 2)} for k, name in enumerate(kernels)]
    settings.append({"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX AVX2 FMA3 X86_V3 X86_V4"})
    digests = set()
    for number, setting in enumerate(settings):
        given = [tmp_path / "c.safetensors", 1 + number % 3, tmp_path / "model"]
        command = [sys.executable, "-W", "ignore", "-c", _ROUND, *map(str, given)]
        done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1
