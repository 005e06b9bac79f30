"""ggml's encoders as a backend: the reference's bytes, llama.cpp's files, and refusals before the process ends."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import edgekit
from edgekit.encoding import choose
from edgekit.errors import MissingPluginError, NonFiniteError, PluginError, ScaleOverflowError, ShapeError, UsageError
from edgekit.plugin import manager
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit_gguf import recipes
from edgekit_llamacpp import KINDS, native

SAMPLE = Path(edgekit.__file__).parent / "sample" / "model"
ENCODED = [kind for kind in KINDS if kind not in native.GRIDS]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def rows(kind: str, count: int = 24) -> np.ndarray:
    """Ordinary rows, rows of every magnitude, constants, zeros and outliers."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((count, 512)).astype(np.float32)
    x[1] *= np.float32(1e-6)
    x[2] *= np.exp2(rng.integers(-20, 8, 512)).astype(np.float32)
    x[3], x[4], x[5, 17] = 0, 0.25, 30
    return x


def weights() -> np.ndarray:
    return (np.random.default_rng(8).standard_normal(512) ** 4 + 1e-3).astype(np.float32)


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "weighed"])
@pytest.mark.parametrize("kind", ENCODED)
def test_bytes_are_the_references(kind: str, weighed: bool):
    x, importance = rows(kind), weights() if weighed else None
    precision = find_precision(f"ggml:{kind}")
    wanted = reference(precision).encode(x, precision, importance)["blocks"]
    got = getattr(native, kind).encode(x, importance)["blocks"]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, wanted)


# The tables of the other grid types take up to half a minute to build (IQ1_M): too long for every run.
@pytest.mark.parametrize("kind", ["IQ3_S", "IQ3_XXS", "IQ2_XXS"])
def test_grid_types_come_out_near_their_input(kind: str):
    """What ggml encodes has to decode to less than the noise of its bits."""
    x = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    tensor = edgekit.encode(x, f"ggml:{kind}", importance=np.ones(256, np.float32), backend="llamacpp")
    assert tensor.backend == "llamacpp"
    error = np.square(x - tensor.dequantize()).mean() / np.square(x).mean()
    assert error < {"IQ3": 0.06, "IQ2": 0.20}[kind[:3]]


def test_it_is_the_default_and_may_be_named():
    precision = find_precision("ggml:Q4_K")
    chosen = choose(precision, "llamacpp")
    assert chosen is not None
    assert chosen.options["claim"] == "exact"
    fastest = choose(precision, None)
    assert fastest is not None
    assert fastest.options["speed"] >= chosen.options["speed"]
    x = rows("Q4_K")
    assert edgekit.encode(x, "ggml:Q4_K", backend="llamacpp").backend == "llamacpp"


def test_every_type_is_registered_once():
    names = [r.name for r in manager().all("quantizers") if r.plugin == "llamacpp"]
    assert sorted(names) == sorted(f"ggml:{kind}" for kind in native.IDS)


@pytest.mark.parametrize("kind", sorted(native.NEED_IMPORTANCE))
def test_what_aborts_without_importance_is_refused(kind: str):
    """That it does abort is shown in a child process, so that the refusal is not for nothing."""
    with pytest.raises(UsageError, match=f"^ggml:{kind} cannot be encoded without an importance matrix; make one"):
        edgekit.encode(np.ones((1, 256), np.float32), f"ggml:{kind}", backend="llamacpp")
    if kind != "IQ2_XXS":
        return  # one is enough: it takes seconds
    code = f"import numpy; from edgekit_llamacpp import native; native.quantize_chunk({kind!r}, numpy.ones((1, 256)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode < 0


def test_what_leads_off_the_grid_is_refused():
    ones = np.ones(256, np.float32)
    for value, error in ((np.nan, NonFiniteError), (-np.inf, NonFiniteError), (2e8, ScaleOverflowError)):
        x = np.ones((1, 256), np.float32)
        x[0, 9] = value
        with pytest.raises(error, match="ggml:IQ3_S"):
            native.IQ3_S.encode(x, ones)


def test_rows_and_importance_have_to_fit():
    with pytest.raises(ShapeError, match="a multiple of 256"):
        native.quantize_chunk("Q4_K", np.ones((2, 128), np.float32))
    with pytest.raises(UsageError, match="one value for each of 256 columns"):
        native.quantize_chunk("Q4_K", np.ones((2, 256), np.float32), np.ones(32, np.float32))


def test_a_library_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch):
    """As one compiled with fused multiply-add would: here the encoder of another type stands in for it."""
    native._probe.cache_clear()
    monkeypatch.setitem(native.IDS, "Q4_0", native.IDS["IQ4_NL"])
    monkeypatch.setattr(native, "block_size", lambda kind: native.BlockSize(32, 18))
    with pytest.raises(PluginError, match="encodes Q4_0 to other bytes than the reference"):
        native.Q4_0.encode(np.ones((1, 32), np.float32))
    native._probe.cache_clear()


def test_a_missing_library_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(MissingPluginError, match="is not there; reinstall llama-cpp-python"):
        native.library_path()


def test_python_runs_on_while_it_encodes():
    """The interpreter's lock is free: another thread counts meanwhile."""
    native.Q3_K.encode(np.ones((1, 256), np.float32))
    x = np.random.default_rng(0).standard_normal((512, 2048)).astype(np.float32)
    thread = threading.Thread(target=native.Q3_K.encode, args=(x,))
    ticks = 0
    thread.start()
    while thread.is_alive():
        ticks += 1
        time.sleep(0.001)
    assert ticks > 5


def llama_quantize(source: Path, target: Path, recipe: str, importance: dict[str, np.ndarray] | None = None) -> bytes:
    """What ``llama-quantize`` writes."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = getattr(recipes, recipe).file_type, 1
    if importance:
        entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        entries = [entry(name.encode(), v.ctypes.data_as(pointer), len(v)) for name, v in importance.items()]
        parameters.imatrix = (entry * (len(entries) + 1))(*entries)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target.read_bytes()


@pytest.mark.parametrize("recipe", ["Q8_0", "Q5_0", "Q4_1", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_NL", "IQ4_XS"])
@pytest.mark.parametrize("model", ["stories", "sample_gguf"])
def test_whole_files_equal_llama_quantizes(recipe: str, model: str, tmp_path: Path, request: pytest.FixtureRequest):
    source = request.getfixturevalue(model)
    theirs = llama_quantize(source, tmp_path / "theirs.gguf", recipe)
    written = edgekit.quantize(source, recipe, to=tmp_path / "ours.gguf", backend="llamacpp")
    assert (tmp_path / "ours.gguf").read_bytes() == theirs
    assert written.manifest is not None
    assert "llamacpp" in {t["backend"] for t in written.manifest.tensors.values()}
