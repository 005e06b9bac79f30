"""The conformance kit on the kernels; and on a copy with one lane broken, which it has to catch."""

import numpy as np
import pytest

import edgekit_numba
from edgekit.plugin import manager
from edgekit.precision import find_precision
from edgekit.testing import run_quantizer_checks
from edgekit_numba import compiler, encoders, kernels, library, superblocks
from edgekit_numba.vectors import F32, I32, Vector, ir

SOME = [
    "ggml:Q8_0",
    "ggml:Q4_K",
    "ggml:MXFP4",
    "ggml:IQ2_XXS",
    "mlx:int4-g64",
    "openvino:int4-asym-g64",
    "onnx:int4-asym-g32",
]
BROKEN_LANE = 3
PRECISION = find_precision("ggml:Q4_K")


def registration(name):
    return next(r for r in manager().all("quantizers") if (r.name, r.plugin) == (name, "numba"))


def test_everything_is_registered_as_exact():
    own = [r for r in manager().all("quantizers") if r.plugin == "numba"]
    kinds = edgekit_numba.KINDS + edgekit_numba.GRIDS
    assert {r.name for r in own} == {f"ggml:{kind}" for kind in kinds} | set(edgekit_numba.GROUPED)
    assert {r.options["claim"] for r in own} == {"exact"}


@pytest.mark.parametrize("name", SOME)
def test_the_kit_finds_nothing(name):
    wrong = [str(result) for result in run_quantizer_checks(registration(name), profile="quick") if not result.ok]
    assert not wrong


def one_lane_broken(code, x, out, weights):
    """Q4_K, but in one lane the last element counts as zero."""
    value, lane = x[255].value, ir.Constant(I32, BROKEN_LANE)
    x[255] = Vector(code, code.builder.insert_element(value, ir.Constant(F32, 0.0), lane))
    return superblocks.six_bit_block(code, x, out, weights, top=15, coarse=(-1.0, 0.1, 20))


@pytest.fixture
def broken(monkeypatch):
    emit = kernels.Emitter("one_lane_broken", 256, 144, one_lane_broken)
    kernel = compiler.compiled("one_lane_broken", emit, library._arguments("Q4_K"))
    monkeypatch.setattr(library, "kernel", lambda name: kernel)
    return encoders.Encoder("Q4_K")


def test_a_broken_lane_is_the_only_one_that_differs(broken):
    x = np.random.default_rng(3).standard_normal((1, 256 * compiler.processor().lanes)).astype(np.float32)
    ours = broken.encode(x)["blocks"].reshape(-1, 144)
    theirs = encoders.reference(PRECISION).encode(x, PRECISION)["blocks"].reshape(-1, 144)
    assert np.flatnonzero((ours != theirs).any(axis=1)).tolist() == [BROKEN_LANE]


def test_the_kit_catches_a_broken_lane(broken):
    results = run_quantizer_checks(broken, precision="ggml:Q4_K", claim="exact", profile="quick")
    assert any("its bytes are not the reference's" in str(result) for result in results if not result.ok)
