"""Importance matrices: what the forward pass counts, llama.cpp's file, and whole files made with one."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import family_oracles
import llama_cpp
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

import edgekit
from edgekit.architectures.forward import Transformer, rms_norm
from edgekit.architectures.numpy_ops import NumpyOps
from edgekit.errors import (
    InvalidFileError,
    MissingFileError,
    NonFiniteError,
    PluginError,
    UsageError,
)
from edgekit.evaluation.calibration import collect, importance, read_importance, write_importance
from edgekit_gguf import recipes
from edgekit_llamacpp import activations


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


@pytest.fixture(scope="module", params=["stories", "sample_gguf"])
def source(request: pytest.FixtureRequest) -> Path:
    """A trained model: one whose logits have a matrix of their own, one whose logits are made with the embedding."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def artifact(source: Path) -> edgekit.Artifact:
    return edgekit.open(source)


@pytest.fixture(scope="module")
def text(request: pytest.FixtureRequest, source: Path, sample_gguf: Path) -> str:
    found: str = request.getfixturevalue("sample_text" if source == sample_gguf else "stories_text")
    return found[:4000]


def test_it_is_the_mean_of_squared_inputs(artifact: edgekit.Artifact):
    """The first matrix's input is known in closed form: the normalized embeddings."""
    tokens = np.random.default_rng(2).integers(3, 500, 600)
    found = importance(artifact, tokens, context=200)
    seen = tokens.reshape(3, 200).copy()
    assert artifact.tokenizer is not None
    if artifact.tokenizer.add_bos:
        seen[:, 0] = artifact.tokenizer.bos
    model = artifact.model
    embedded = model.tensors["token_embd.weight"].float32()[seen.reshape(-1)]
    x = rms_norm(embedded, model.config.norm_eps) * model.tensors["blk.0.attn_norm.weight"].float32()
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], np.square(x).mean(axis=0), rtol=1e-5)


def test_every_matrix_of_the_layers_is_there_and_the_outputs_when_asked(artifact: edgekit.Artifact, text: str):
    matrices = {name for name, t in artifact.model.tensors.items() if len(t.shape) == 2}
    layers = {name for name in matrices if name.startswith("blk.")}
    plain, full = importance(artifact, text), importance(artifact, text, outputs=True)
    assert set(plain) == layers
    output = "token_embd.weight" if artifact.model.config.tied else "output.weight"
    assert set(full) == layers | {output}
    for name, values in full.items():
        assert values.dtype == np.float32
        assert values.shape == artifact.model.tensors[name].shape[-1:]


def test_the_file_is_llama_cpps(artifact: edgekit.Artifact, text: str, tmp_path: Path):
    """Names, shapes and keys as llama.cpp's ``load_imatrix`` wants them; gguf-py is the second reader."""
    found = collect(artifact, text, context=256)
    write_importance(tmp_path / "imatrix.gguf", found, "stories")
    file = GGUFReader(tmp_path / "imatrix.gguf")
    assert file.fields["general.type"].contents() == "imatrix"
    assert file.fields["imatrix.datasets"].contents() == ["stories"]
    assert file.fields["imatrix.chunk_count"].contents() * file.fields["imatrix.chunk_size"].contents() == found.tokens
    tensors = {tensor.name: tensor.data for tensor in file.tensors}
    assert len(tensors) == 2 * len(found.sums)
    for name, values in found.importance().items():
        np.testing.assert_allclose(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"], values, rtol=1e-6)


def test_what_is_written_is_read(artifact: edgekit.Artifact, text: str, tmp_path: Path):
    found = collect(artifact, text)
    write_importance(tmp_path / "imatrix.gguf", found)
    read = read_importance(tmp_path / "imatrix.gguf", artifact)
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
        {"a.in_sum2": np.ones((2, 8), np.float32), "a.counts": np.ones((3, 1), np.float32)},
        InvalidFileError,
        "a has 2 rows and 3 counts; get the file again",
    ),
    "an expert": (
        {"a.in_sum2": np.ones((2, 8), np.float32), "a.counts": np.array([[1], [1e-45]], np.float32)},
        InvalidFileError,
        "a of expert 1 was counted 1.4013e-45 times, which makes its importance infinite",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(case: str, tmp_path: Path):
    tensors, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        read_importance(write_file(tmp_path / "broken.gguf", tensors))


def test_other_files_are_refused(source: Path, artifact: edgekit.Artifact, tmp_path: Path):
    with pytest.raises(UsageError, match="a GGUF file, but no importance matrix; make one with `edgekit imatrix`"):
        read_importance(source)
    with pytest.raises(MissingFileError, match="no such file"):
        read_importance(tmp_path / "nowhere.gguf")
    with pytest.raises(UsageError, match=r"hf holds no importance matrices; name a file that ends in \.gguf"):
        write_importance(tmp_path / "folder", collect(artifact, [1, 2, 3]))
    other = write_file(tmp_path / "other.gguf", {"a.in_sum2": ONE, "a.counts": ONE})
    with pytest.raises(UsageError, match="it has no matrix in common with"):
        read_importance(other, artifact)
    name = "blk.0.attn_q.weight"
    narrow = write_file(tmp_path / "narrow.gguf", {f"{name}.in_sum2": ONE, f"{name}.counts": ONE})
    with pytest.raises(UsageError, match=f"{name} has 1 columns, in .* {artifact.model.config.width}; make"):
        read_importance(narrow, artifact)


def test_bad_calibrations_are_refused(artifact: edgekit.Artifact, text: str):
    with pytest.raises(UsageError, match="too few to score"):
        importance(artifact, [1, 2])
    with pytest.raises(UsageError, match="a window of 2 tokens; choose between 3 and"):
        importance(artifact, text, context=2)


@pytest.mark.parametrize("backend", ["reference", "llamacpp"])
@pytest.mark.parametrize("recipe", ["Q4_0", "Q5_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS"])
def test_whole_files_equal_llama_quantizes(recipe: str, backend: str, source: Path, text: str, tmp_path: Path):
    """With the importance that edgekit computed, through the file, against ``llama_model_quantize``."""
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


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> edgekit.Artifact:
    """Experts whose matrices have two blocks of 256 a row; fewer tokens than experts, so that some are not reached."""
    folder = tmp_path_factory.mktemp("mixture")
    config = {
        "model_type": "qwen3_moe", "vocab_size": 96, "hidden_size": 512, "intermediate_size": 256,
        "moe_intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 32, "num_experts": 24, "num_experts_per_tok": 2, "norm_topk_prob": True,
        "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    family_oracles.saved_model(config, folder / "hf")
    return edgekit.convert(folder / "hf", folder / "mixture.gguf", dtype="F32")


def test_each_expert_has_an_importance_of_its_own(mixture: edgekit.Artifact, tmp_path: Path):
    """What a router's choice sums up by hand; the file has it as llama.cpp's does, and gives it back."""
    tokens = np.random.default_rng(3).integers(0, 90, 24)
    found = collect(mixture, tokens, context=8)
    seen: dict[str, list[np.ndarray]] = {}
    model = Transformer(mixture.model, observe=lambda name, x: seen.setdefault(name, []).append(x))
    model.hidden(tokens.reshape(3, 8))
    weights = found.importance()
    for layer in range(2):
        for name, cols in (("gate", 512), ("up", 512), ("down", 256)):
            stack = f"blk.{layer}.ffn_{name}_exps.weight"
            assert weights[stack].shape == (24, cols)
            assert found.counts[stack].sum() == 48
            assert 0 < np.count_nonzero(found.counts[stack]) < 24
            for expert, values in enumerate(weights[stack]):
                inputs = np.concatenate(seen.get(f"{stack}[{expert}]", [np.zeros((1, cols), np.float32)]))
                np.testing.assert_allclose(values, np.square(inputs).mean(axis=0), rtol=1e-5)
    assert not any("[" in name for name in found.sums)
    write_importance(tmp_path / "imatrix.gguf", found)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "imatrix.gguf").tensors}
    assert tensors["blk.0.ffn_up_exps.weight.in_sum2"].shape == (24, 512)
    assert tensors["blk.0.ffn_up_exps.weight.counts"].shape == (24, 1)
    read = read_importance(tmp_path / "imatrix.gguf", mixture)
    for name, values in weights.items():
        np.testing.assert_allclose(read[name], values, rtol=2e-7)


@pytest.mark.parametrize("backend", ["reference", "llamacpp"])
@pytest.mark.parametrize("recipe", ["Q4_0", "Q4_K_M", "Q2_K", "Q3_K_M", "IQ4_XS"])
def test_whole_files_of_experts_equal_llama_quantizes(
    recipe: str, backend: str, mixture: edgekit.Artifact, tmp_path: Path
):
    """Weighed by what some tokens gave each expert; llama.cpp takes 1 for an expert that none reached."""
    weights = importance(mixture, np.random.default_rng(3).integers(0, 90, 24), context=8)
    assert any(not values.any(axis=-1).all() for values in weights.values() if values.ndim == 2)
    exact = {n: np.where(v.any(-1, keepdims=True), v, np.float32(1)).reshape(-1) for n, v in weights.items()}
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = getattr(recipes, recipe).file_type, 1
    entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    entries = [entry(name.encode(), v.ctypes.data_as(pointer), len(v)) for name, v in exact.items()]
    parameters.imatrix = (entry * (len(entries) + 1))(*entries)
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    source = str(mixture.path).encode()
    assert llama_cpp.llama_model_quantize(source, str(theirs).encode(), ctypes.byref(parameters)) == 0
    edgekit.quantize(mixture, recipe, to=ours, importance=weights, backend=backend, exact_importance=True)
    assert ours.read_bytes() == theirs.read_bytes()


def test_importance_of_another_number_of_experts_is_refused(mixture: edgekit.Artifact, tmp_path: Path):
    name = "blk.0.ffn_up_exps.weight"
    for experts, said in ((3, "3"), (1, "no")):
        tensors = {f"{name}.in_sum2": np.ones((experts, 512), np.float32), f"{name}.counts": np.ones((experts, 1))}
        path = write_file(tmp_path / f"{experts}.gguf", {n: v.astype(np.float32) for n, v in tensors.items()})
        with pytest.raises(UsageError, match=rf"{re.escape(name)} has {said} experts, in .* 24; make an importance"):
            read_importance(path, mixture)


def test_the_command_line(tmp_path: Path, source: Path, artifact: edgekit.Artifact, text: str):
    (tmp_path / "text.txt").write_text(text, "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "edgekit", *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    made = run("imatrix", str(source), "text.txt", "--to", "imatrix.gguf")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"imatrix.gguf  {7 * artifact.model.config.layers} matrices, ")
    done = run("quantize", str(source), "Q3_K_M", "--to", "a.gguf", "--imatrix", "imatrix.gguf")
    assert done.returncode == 0, done.stderr
    edgekit.quantize(artifact, "Q3_K_M", to=tmp_path / "b.gguf", importance=read_importance(tmp_path / "imatrix.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    wrong = run("quantize", str(source), "Q3_K_M", "--to", "c.gguf", "--imatrix", str(source))
    assert wrong.returncode == 2
    assert not (tmp_path / "c.gguf").exists()


def test_a_model_that_computes_nan_is_no_calibration(artifact: edgekit.Artifact, monkeypatch: pytest.MonkeyPatch):
    original = NumpyOps.rms_norm
    monkeypatch.setattr(NumpyOps, "rms_norm", lambda self, *given: original(self, *given) * np.float32("nan"))
    with pytest.raises(NonFiniteError, match=r"the input of blk\.0\.attn_q\.weight is not finite"):
        importance(artifact, [1, 2, 3])


@pytest.mark.parametrize("outputs", [False, True], ids=["layers", "outputs too"])
def test_llama_cpps_activations_are_the_forward_pass(outputs: bool, text: str, artifact: edgekit.Artifact):
    """Both compute in float32 and sum in another order: 2e-6 of the largest column measured."""
    slow = collect(artifact, text[:1500], context=128, outputs=outputs)
    fast = collect(artifact, text[:1500], context=128, outputs=outputs, runtime="llamacpp")
    assert (fast.tokens, fast.context) == (slow.tokens, slow.context)
    assert set(fast.sums) == set(slow.sums)
    for name, sums in slow.sums.items():
        assert np.abs(fast.sums[name] - sums).max() < 1e-5 * sums.max(), name


def test_the_command_line_takes_a_runtime(tmp_path: Path, source: Path, artifact: edgekit.Artifact, text: str):
    (tmp_path / "text.txt").write_text(text, "utf-8")
    line = [sys.executable, "-m", "edgekit", "imatrix", str(source), "text.txt", "--to", "i.gguf", "--runtime"]
    made = subprocess.run([*line, "llamacpp"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert {line.split(":")[0] for line in made.stderr.splitlines()} == {"imatrix"}  # its progress, no library's log
    for name, values in importance(artifact, text).items():
        np.testing.assert_allclose(read_importance(tmp_path / "i.gguf")[name], values, rtol=1e-4, atol=1e-9)
    refused = subprocess.run([*line, "numpy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "runtime numpy does not show what goes into its matrices; leave it out, or use llamacpp" in refused.stderr


def test_a_library_that_lays_tensors_out_otherwise_is_refused(
    artifact: edgekit.Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations._Node, "name", b"another place")
    with pytest.raises(PluginError, match=r"lays out its tensors otherwise than 0\.3\.36.*leave the runtime out"):
        importance(artifact, [1, 2, 3], runtime="llamacpp")


def test_windows_are_checked_before_llama_cpp_sees_them(artifact: edgekit.Artifact):
    with pytest.raises(UsageError, match="the vocabulary has 0 to 511"):
        importance(artifact, [1, 2, 10**6], runtime="llamacpp")
