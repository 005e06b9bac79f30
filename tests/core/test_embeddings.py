"""Embedding models without any framework: known states of transformers, sentence-transformers' modules, WordPiece."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import edgekit
from edgekit.architectures import FAMILIES, tensor_shapes
from edgekit.architectures.blocks import NO_PREDICTION
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.architectures.hf import config_from_hf, hf_config, hf_tensors, model_from_hf
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.runtime.numpy import NumpyRuntime
from edgekit.testing.models import random_hf_tensors, random_model
from edgekit.tokenizer import TokenType, from_hf_directory

VECTORS = json.loads((Path(__file__).parent / "vectors" / "encoders.json").read_text("utf-8"))
TOKENS = np.array(VECTORS["tokens"])
cases = pytest.mark.parametrize("name", VECTORS["cases"])
BERT = VECTORS["cases"]["bert-mean"]["config"]


def config_of(name):
    return config_from_hf(VECTORS["cases"][name]["config"], name)


@cases
def test_states_are_those_of_transformers(name):
    known = VECTORS["cases"][name]
    found = Transformer(random_model(config_of(name))).hidden(TOKENS)
    assert np.abs(found[-1] - np.array(known["last"])).max() < 1e-4 * known["scale"]


@cases
def test_a_directory_holds_the_model_and_nothing_else(name):
    config = config_of(name)
    model = random_model(config)
    written = {hf: tensor for hf, (_, tensor) in hf_tensors(config, model.tensors).items()}
    back = model_from_hf(VECTORS["cases"][name]["config"], written)
    assert list(back.tensors) == list(tensor_shapes(config))
    for role, tensor in model.tensors.items():
        np.testing.assert_allclose(back.tensors[role].float32(), tensor.float32(), rtol=1e-6, atol=1e-6)
    assert config_from_hf(json.loads(json.dumps(hf_config(config))), "written") == config


@pytest.mark.parametrize("name", ["bert-mean", "embedding_gemma-mean"])
def test_an_encoder_sees_both_sides_and_predicts_nothing(name):
    network = Transformer(random_model(config_of(name)))
    other = TOKENS.copy()
    other[-1] = (other[-1] + 1) % 40
    assert np.abs(network.hidden(TOKENS)[-2] - network.hidden(other)[-2]).max() > 1e-4
    for ask in (network.logits, lambda tokens: network.step(tokens, KVCache())):
        with pytest.raises(UnsupportedModelError, match=re.escape(NO_PREDICTION)):
            ask(TOKENS)


def test_one_model_type_may_have_two_families():
    for flag, name in [(True, "embedding_gemma"), (False, "gemma3"), (None, "gemma3")]:
        assert FAMILIES.of_config({"model_type": "gemma3_text", "use_bidirectional_attention": flag}).name == name


def test_old_names_heads_and_prefixes_of_bert_are_read():
    config = config_of("bert-mean")
    ours = random_hf_tensors(config)
    old = {}
    for name, tensor in ours.items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[f"bert.{name}"] = tensor
    vector = next(iter(ours.values()))
    old |= {"bert.pooler.dense.weight": vector, "cls.predictions.bias": vector}
    found = Transformer(model_from_hf(BERT, old)).hidden(TOKENS)
    np.testing.assert_array_equal(found, Transformer(model_from_hf(BERT, ours)).hidden(TOKENS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; edgekit knows 'gelu' for BERT"),
        ({"is_decoder": True}, "is_decoder is True; edgekit knows False for BERT"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'; edgekit knows 'absolute'",
        ),
    ],
)
def test_features_of_bert_that_are_not_there_are_refused(changes, message):
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        config_from_hf(BERT | changes, "config.json")


# --- modules --------------------------------------------------------------------------------------------------------


def directory(folder: Path, modes: dict, dense: list[tuple[int, dict]] = (), more: list[str] = ()) -> Path:
    """A directory of sentence-transformers with a small BERT."""
    folder.mkdir(exist_ok=True)
    tensors = random_hf_tensors(config_from_hf(BERT, "test"))
    save_file({name: tensor.read() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(BERT))
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *more]
    modules = [
        {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    width = BERT["hidden_size"]
    for number, (rows, changes) in enumerate(dense, 2):
        inner = folder / f"{number}_Dense"
        inner.mkdir(exist_ok=True)
        values = np.random.RandomState(number).standard_normal((rows, width)).astype(np.float32)
        save_file({"linear.weight": values}, inner / "model.safetensors")
        settings = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"} | changes
        (inner / "config.json").write_text(json.dumps(settings))
        width = rows
    return folder


def embedded(path: Path) -> np.ndarray:
    with NumpyRuntime.open(edgekit.open(path)) as model:
        return model.embed(TOKENS.tolist())


@pytest.mark.parametrize(
    ("modes", "pooled"),
    [
        ({"pooling_mode": "mean"}, lambda states: states.mean(axis=0)),
        ({"pooling_mode": ["cls"]}, lambda states: states[0]),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, lambda states: states[-1]),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False, "include_prompt": True}, lambda s: s[0]),
        ({}, lambda states: states.mean(axis=0)),
    ],
)
def test_states_are_pooled_as_the_directory_says(modes, pooled, tmp_path):
    folder = directory(tmp_path / "hf", modes, more=["Normalize"])
    vector = pooled(Transformer(edgekit.open(folder).model).hidden(TOKENS))
    np.testing.assert_allclose(embedded(folder), vector / np.linalg.norm(vector), atol=1e-6)


def test_dense_matrices_follow_the_pooling_and_a_copy_keeps_all(tmp_path):
    folder = directory(tmp_path / "hf", {"pooling_mode": "cls"}, [(96, {}), (32, {})])
    model = edgekit.open(folder).model
    assert (model.config.pooling, model.config.dense) == ("first", (96, 32))
    assert [name for name in model.tensors if name.startswith("dense")] == ["dense_2.weight", "dense_3.weight"]
    vector = Transformer(model).hidden(TOKENS)[0]
    for number in (2, 3):
        vector = model.tensors[f"dense_{number}.weight"].float32() @ vector
    expected = vector / np.linalg.norm(vector)
    np.testing.assert_allclose(embedded(folder), expected, atol=1e-6)
    copy = edgekit.convert(folder, tmp_path / "copy")
    np.testing.assert_allclose(embedded(copy.path), expected, atol=1e-6)
    again = edgekit.convert(folder, copy.path, overwrite=True)  # what it wrote itself may be replaced
    assert again.model.config == model.config


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            {"modes": {"pooling_mode": "max"}},
            UnsupportedModelError,
            "it pools by max; edgekit computes one of cls, mean",
        ),
        ({"modes": {"pooling_mode": ["cls", "mean"]}}, UnsupportedModelError, "it pools by cls and mean"),
        ({"more": ["LSTM"]}, UnsupportedModelError, "it has a module 'LSTM'; edgekit computes Transformer, Pooling"),
        (
            {"dense": [(8, {"activation_function": "torch.nn.modules.activation.Tanh"})]},
            UnsupportedModelError,
            "a dense module with activation 'torch.nn.modules.activation.Tanh' and bias False; edgekit computes plain",
        ),
        ({"dense": [(8, {"bias": True})]}, UnsupportedModelError, "a dense module with activation"),
    ],
)
def test_modules_that_are_not_computed_are_refused(damage, error, message, tmp_path):
    folder = directory(tmp_path / "hf", **{"modes": {"pooling_mode": "mean"}} | damage)
    with pytest.raises(error, match=re.escape(message)):
        _ = edgekit.open(folder).model


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"type": 3}]', '[{"type": "x.Pooling", "path": "../other"}]'])
def test_damaged_lists_of_modules_are_refused(text, tmp_path):
    folder = directory(tmp_path / "hf", {"pooling_mode": "mean"})
    (folder / "modules.json").write_text(text)
    with pytest.raises(InvalidFileError, match=re.escape("modules.json")):
        _ = edgekit.open(folder).model


def test_a_matrix_of_another_width_is_refused(tmp_path):
    folder = directory(tmp_path / "hf", {"pooling_mode": "mean"}, [(8, {})])
    save_file({"linear.weight": np.ones((8, 5), np.float32)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(InvalidFileError, match=r"linear.weight has shape \[8, 5\]; it has to take vectors of 64"):
        _ = edgekit.open(folder).model


def test_a_link_out_of_the_directory_is_refused(tmp_path):
    folder, other = directory(tmp_path / "hf", {"pooling_mode": "mean"}), tmp_path / "other"
    (folder / "1_Pooling").rename(other)
    (folder / "1_Pooling").symlink_to(other)
    with pytest.raises(InvalidFileError, match="the link leads out of the directory"):
        _ = edgekit.open(folder).model


# --- WordPiece ------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "hello", ",", "cafe"]


def vocabulary(folder: Path, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_vocabulary_of_word_pieces_is_read(tmp_path):
    tokenizer = from_hf_directory(vocabulary(tmp_path / "a"))
    assert (tokenizer.kind, tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad) == ("wordpiece", 2, 3, 1, 0)
    assert tokenizer.types[:6] == (C, TokenType.UNKNOWN, C, C, C, TokenType.NORMAL)
    assert tokenizer.decode([2, 5, 6, 7, 9, 8, 3]) == "unaffable , hello"
    cased = from_hf_directory(vocabulary(tmp_path / "b", do_lower_case=False))
    assert (cased.lowercase, cased.strip_accents) == (False, False)


C = TokenType.CONTROL


def test_word_pieces_of_a_text(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = from_hf_directory(vocabulary(tmp_path / "a"))
    assert tokenizer.encode("Unaffable,  HELLO café there") == [2, 5, 6, 7, 9, 8, 10, 1, 3]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    again = from_hf_directory(tmp_path / "b")
    assert (again.kind, again.bos, again.eos, again.pre, again.add_eos) == ("wordpiece", 2, 3, "default", True)
    assert again.encode("unaffable") == [2, 5, 6, 7, 3]


def test_texts_are_neither_cut_nor_filled_up(tmp_path):
    """The tokenizer.json of all-MiniLM cuts every text to 128 tokens, and fills shorter ones up."""
    pytest.importorskip("tokenizers")
    content = json.loads(from_hf_directory(vocabulary(tmp_path / "a")).to_json())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    tokenizer = from_hf_directory(tmp_path)
    assert tokenizer.encode("hello") == [2, 8, 3]
    assert tokenizer.encode("hello hello hello hello hello") == [2, 8, 8, 8, 8, 8, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[CLS]\n[SEP]\n", "it has no token [UNK]"),
        (b"[CLS]\n[SEP]\n[UNK]\na\na\n", "it has a token twice"),
        (b"[CLS]\n\xff\n", "not UTF-8 at byte 6"),
    ],
)
def test_damaged_vocabularies_are_refused(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(InvalidFileError, match=re.escape(f"vocab.txt: {message}; fetch it again")):
        from_hf_directory(tmp_path)
