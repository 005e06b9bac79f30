"""Importance matrices: what the forward pass counts, llama.cpp's file, and whole files made with one."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

import edgekit
from edgekit.architectures.forward import Transformer, rms_norm
from edgekit.errors import (
    InvalidFileError,
    MissingFileError,
    NonFiniteError,
    PluginError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.evaluation.calibration import collect, importance, read_importance, write_importance
from edgekit_gguf import recipes
from edgekit_llamacpp import activations

DATA = Path(os.environ.get("EDGEKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
STORIES = DATA / "stories260K.gguf"
SAMPLE = Path(edgekit.__file__).parent / "sample" / "model"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


@pytest.fixture(scope="module")
def stories() -> edgekit.Artifact:
    if not STORIES.is_file():
        pytest.skip(f"no {STORIES}")
    return edgekit.open(STORIES)


@pytest.fixture(scope="module")
def text() -> str:
    return (DATA / "stories-sample.txt").read_text("utf-8")[:4000]


def test_it_is_the_mean_of_squared_inputs(stories: edgekit.Artifact):
    """The first matrix's input is known in closed form: the normalized embeddings."""
    tokens = np.random.default_rng(2).integers(3, 500, 600)
    found = importance(stories, tokens, context=200)
    seen = tokens.reshape(3, 200).copy()
    assert stories.tokenizer is not None
    seen[:, 0] = stories.tokenizer.bos
    model = stories.model
    embedded = model.tensors["token_embd.weight"].float32()[seen.reshape(-1)]
    x = rms_norm(embedded, model.config.norm_eps) * model.tensors["blk.0.attn_norm.weight"].float32()
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], np.square(x).mean(axis=0), rtol=1e-5)


def test_every_matrix_of_the_layers_is_there_and_the_outputs_when_asked(stories: edgekit.Artifact, text: str):
    matrices = {name for name, t in stories.model.tensors.items() if len(t.shape) == 2}
    layers = {name for name in matrices if name.startswith("blk.")}
    plain, full = importance(stories, text), importance(stories, text, outputs=True)
    assert set(plain) == layers
    assert set(full) == layers | {"output.weight"}
    for name, values in full.items():
        assert values.dtype == np.float32
        assert values.shape == stories.model.tensors[name].shape[-1:]


def test_the_file_is_llama_cpps(stories: edgekit.Artifact, text: str, tmp_path: Path):
    """Names, shapes and keys as llama.cpp's ``load_imatrix`` wants them; gguf-py is the second reader."""
    found = collect(stories, text, context=256)
    write_importance(tmp_path / "imatrix.gguf", found, "stories")
    file = GGUFReader(tmp_path / "imatrix.gguf")
    assert file.fields["general.type"].contents() == "imatrix"
    assert file.fields["imatrix.datasets"].contents() == ["stories"]
    assert file.fields["imatrix.chunk_count"].contents() * file.fields["imatrix.chunk_size"].contents() == found.tokens
    tensors = {tensor.name: tensor.data for tensor in file.tensors}
    assert len(tensors) == 2 * len(found.sums)
    for name, values in found.importance().items():
        np.testing.assert_allclose(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"], values, rtol=1e-6)


def test_what_is_written_is_read(stories: edgekit.Artifact, text: str, tmp_path: Path):
    found = collect(stories, text)
    write_importance(tmp_path / "imatrix.gguf", found)
    read = read_importance(tmp_path / "imatrix.gguf", stories)
    assert list(read) == sorted(found.sums)
    for name, values in found.importance().items():
        np.testing.assert_allclose(read[name], values, rtol=2e-7)


def write_file(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """An importance matrix as gguf-py writes it."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["somewhere"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_foreign_file_is_read(tmp_path: Path):
    """With the dimension that llama.cpp has for experts, and a matrix that no token reached."""
    sums = np.arange(8, dtype=np.float32)
    tensors = {"a.in_sum2": sums[None], "a.counts": np.array([[4]], np.float32)}
    tensors |= {"b.in_sum2": sums, "b.counts": np.zeros(1, np.float32)}
    read = read_importance(write_file(tmp_path / "foreign.gguf", tensors))
    np.testing.assert_array_equal(read["a"], sums / 4)
    np.testing.assert_array_equal(read["b"], np.ones(8))


ONE = np.ones(1, np.float32)
BROKEN = {
    "no counts": ({"a.in_sum2": np.ones(8, np.float32)}, InvalidFileError, "a has sums and no counts"),
    "negative": ({"a.in_sum2": -np.ones(8, np.float32), "a.counts": ONE}, InvalidFileError, "negative or non-finite"),
    "infinite": ({"a.in_sum2": np.ones(8, np.float32), "a.counts": ONE * np.inf}, InvalidFileError, "non-finite"),
    "experts": (
        {"a.in_sum2": np.ones((2, 8), np.float32), "a.counts": np.ones((2, 1), np.float32)},
        UnsupportedModelError,
        "the matrix of 2 experts",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(case: str, tmp_path: Path):
    tensors, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        read_importance(write_file(tmp_path / "broken.gguf", tensors))


def test_other_files_are_refused(stories: edgekit.Artifact, tmp_path: Path):
    with pytest.raises(UsageError, match="a GGUF file, but no importance matrix; make one with `edgekit imatrix`"):
        read_importance(STORIES)
    with pytest.raises(MissingFileError, match="no such file"):
        read_importance(tmp_path / "nowhere.gguf")
    with pytest.raises(UsageError, match=r"hf holds no importance matrices; name a file that ends in \.gguf"):
        write_importance(tmp_path / "folder", collect(stories, [1, 2, 3]))
    other = write_file(tmp_path / "other.gguf", {"a.in_sum2": ONE, "a.counts": ONE})
    with pytest.raises(UsageError, match="it has no matrix in common with"):
        read_importance(other, stories)
    name = "blk.0.attn_q.weight"
    narrow = write_file(tmp_path / "narrow.gguf", {f"{name}.in_sum2": ONE, f"{name}.counts": ONE})
    with pytest.raises(UsageError, match=f"{name} has 1 columns, in .* 64; make"):
        read_importance(narrow, stories)


def test_bad_calibrations_are_refused(stories: edgekit.Artifact, text: str):
    with pytest.raises(UsageError, match="too few to score"):
        importance(stories, [1, 2])
    with pytest.raises(UsageError, match="a window of 2 tokens; choose between 3 and"):
        importance(stories, text, context=2)


WHOLE = [("stories260K", r) for r in ("Q4_0", "Q5_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS")]
WHOLE += [("sample", r) for r in ("Q4_K_M", "Q3_K_M", "Q2_K")]


@pytest.mark.parametrize("backend", ["reference", "llamacpp"])
@pytest.mark.parametrize(("model", "recipe"), WHOLE)
def test_whole_files_equal_llama_quantizes(
    model: str, recipe: str, backend: str, text: str, tmp_path: Path, stories: edgekit.Artifact
):
    """With the importance that edgekit computed, through the file, against ``llama_model_quantize``."""
    source = STORIES
    if model == "sample":
        if not (SAMPLE / "config.json").is_file():
            pytest.skip(f"no sample model at {SAMPLE}")
        source = edgekit.convert(SAMPLE, tmp_path / "sample.gguf", dtype="F32").path
    weights = importance(source, text[:1500])
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = getattr(recipes, recipe).file_type, 1
    entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    entries = [entry(name.encode(), v.ctypes.data_as(pointer), len(v)) for name, v in weights.items()]
    parameters.imatrix = (entry * (len(entries) + 1))(*entries)
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(theirs).encode(), ctypes.byref(parameters)) == 0
    edgekit.quantize(source, recipe, to=ours, importance=weights, backend=backend, exact_importance=True)
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_command_line(tmp_path: Path, stories: edgekit.Artifact, text: str):
    (tmp_path / "text.txt").write_text(text, "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "edgekit", *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    made = run("imatrix", str(STORIES), "text.txt", "--to", "imatrix.gguf")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("imatrix.gguf  35 matrices, ")
    done = run("quantize", str(STORIES), "Q3_K_M", "--to", "a.gguf", "--imatrix", "imatrix.gguf")
    assert done.returncode == 0, done.stderr
    edgekit.quantize(stories, "Q3_K_M", to=tmp_path / "b.gguf", importance=read_importance(tmp_path / "imatrix.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    wrong = run("quantize", str(STORIES), "Q3_K_M", "--to", "c.gguf", "--imatrix", str(STORIES))
    assert wrong.returncode == 2
    assert not (tmp_path / "c.gguf").exists()


def test_a_model_that_computes_nan_is_no_calibration(stories: edgekit.Artifact, monkeypatch: pytest.MonkeyPatch):
    original = Transformer._norm
    monkeypatch.setattr(Transformer, "_norm", lambda self, name, x: original(self, name, x) * np.float32("nan"))
    with pytest.raises(NonFiniteError, match=r"the input of blk\.0\.attn_q\.weight is not finite"):
        importance(stories, [1, 2, 3])


@pytest.mark.parametrize("outputs", [False, True], ids=["layers", "outputs too"])
@pytest.mark.parametrize("model", ["stories260K", "sample"])
def test_llama_cpps_activations_are_the_forward_pass(
    model: str, outputs: bool, text: str, tmp_path: Path, stories: edgekit.Artifact
):
    """Both compute in float32 and sum in another order: 2e-6 of the largest column measured."""
    source = stories if model == "stories260K" else edgekit.convert(SAMPLE, tmp_path / "sample.gguf", dtype="F32")
    slow = collect(source, text[:1500], context=128, outputs=outputs)
    fast = collect(source, text[:1500], context=128, outputs=outputs, runtime="llamacpp")
    assert (fast.tokens, fast.context) == (slow.tokens, slow.context)
    assert set(fast.sums) == set(slow.sums)
    for name, sums in slow.sums.items():
        assert np.abs(fast.sums[name] - sums).max() < 1e-5 * sums.max(), name


def test_the_command_line_takes_a_runtime(tmp_path: Path, stories: edgekit.Artifact, text: str):
    (tmp_path / "text.txt").write_text(text, "utf-8")
    line = [sys.executable, "-m", "edgekit", "imatrix", str(STORIES), "text.txt", "--to", "i.gguf", "--runtime"]
    made = subprocess.run([*line, "llamacpp"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    for name, values in importance(stories, text).items():
        np.testing.assert_allclose(read_importance(tmp_path / "i.gguf")[name], values, rtol=1e-4, atol=1e-9)
    refused = subprocess.run([*line, "numpy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "runtime numpy does not show what goes into its matrices; leave it out, or use llamacpp" in refused.stderr


def test_a_library_that_lays_tensors_out_otherwise_is_refused(
    stories: edgekit.Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations._Node, "name", b"another place")
    with pytest.raises(PluginError, match=r"lays out its tensors otherwise than 0\.3\.36.*leave the runtime out"):
        importance(stories, [1, 2, 3], runtime="llamacpp")


def test_windows_are_checked_before_llama_cpp_sees_them(stories: edgekit.Artifact):
    with pytest.raises(UsageError, match="the vocabulary has 0 to 511"):
        importance(stories, [1, 2, 10**6], runtime="llamacpp")
