"""Which tokens end a text, against llama.cpp and transformers; and the chat templates that come with them."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig

import edgekit
from edgekit.errors import UsageError
from edgekit.formats import safetensors
from edgekit.runtime.chat import template_of
from edgekit.testing._tokenizers import bpe
from edgekit.tokenizer import Tokenizer, TokenType
from edgekit.tokenizer.ends import TEXTS, end_ids

OTHERS = (
    "<|EOT|>",
    "<|im_start|>",
    "<start_of_turn>",
    "<|fim_middle|>",
    "<unk>",
    "<|channel|>",
    "eos",
    "<|pad|>",
    "[UNK]",
)
TOGETHER = (
    ("<|end|>", "<|return|>", "<|call|>"),
    ("<|end|>", "<|return|>"),
    ("<|end|>", "<|calls|>", "<|flush|>"),
    ("</s>", "<|tool_response>"),
    ("</s>", "<|im_end|>"),
    ("<|end|>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>"),
)
_SILENT = llama_cpp.llama_log_callback(lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def vocabulary(*tokens: str, **fields: Any) -> Tokenizer:
    """The alphabet of bytes, the given tokens as control tokens, and one more that ends a text."""
    base = [*bpe().tokens[:256], "th", "<<eos>>"]
    types = [TokenType.NORMAL] * 257 + [TokenType.CONTROL] * (1 + len(tokens))
    every = (*base, *tokens)
    return Tokenizer("bpe", every, tuple(types), merges=("t h",), pre="gpt-2", eos=257, add_bos=False, **fields)


def model(place: Path, tokenizer: Tokenizer, **generation: Any) -> Path:
    """A directory with that tokenizer and a tiny model."""
    place.mkdir()
    width, vocab = 32, len(tokenizer.tokens)
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": vocab, "max_position_embeddings": 64, "tie_word_embeddings": True}
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    arrays = {f"model.layers.0.{name}.weight": np.ones((width, width), np.float32) for name in names}
    arrays |= {f"model.layers.0.{n}layernorm.weight": np.ones(width, np.float32) for n in ("input_", "post_attention_")}
    arrays["model.embed_tokens.weight"] = np.ones((vocab, width), np.float32)
    arrays["model.norm.weight"] = np.ones(width, np.float32)
    safetensors.write(place / "model.safetensors", arrays)
    (place / "config.json").write_text(json.dumps(sizes | config))
    (place / "tokenizer.json").write_text(tokenizer.to_json())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<<eos>>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation:
        (place / "generation_config.json").write_text(json.dumps(generation))
    return place


def llama_ends(path: Path) -> set[int]:
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    vocab = llama_cpp.llama_model_get_vocab(loaded)
    found = {n for n in range(llama_cpp.llama_vocab_n_tokens(vocab)) if llama_cpp.llama_vocab_is_eog(vocab, n)}
    llama_cpp.llama_model_free(loaded)
    return found


@pytest.mark.parametrize("tokens", [*((text,) for text in sorted(TEXTS)), *TOGETHER, OTHERS], ids=" ".join)
def test_ends_by_their_text_are_llama_cpps(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    written = edgekit.convert(model(tmp_path / "m", vocabulary(*tokens)), tmp_path / "m.gguf")
    tokenizer = written.tokenizer
    assert tokenizer is not None
    assert tokenizer.end_ids == llama_ends(tmp_path / "m.gguf")


def test_ends_that_only_generation_config_names_go_everywhere_and_back(tmp_path: Path) -> None:
    source = model(tmp_path / "m", vocabulary("<a>", "<b>", "<c>", "<|eot_id|>"), eos_token_id=[257, 258, 260])
    expected = {257, 258, 260, 261}
    written = edgekit.convert(source, tmp_path / "m.gguf")
    assert llama_ends(tmp_path / "m.gguf") == expected
    back = edgekit.convert(written, tmp_path / "back")
    for artifact in (edgekit.open(source), written, back):
        assert artifact.tokenizer is not None
        assert artifact.tokenizer.end_ids == expected
    assert set(GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id) == expected


def test_more_ends_than_gguf_has_keys_for_come_back(tmp_path: Path) -> None:
    names = [f"<{letter}>" for letter in "abcdef"]
    source = model(tmp_path / "m", vocabulary(*names), eos_token_id=[258, 259, 260, 261])
    written = edgekit.convert(source, tmp_path / "m.gguf")
    assert written.tokenizer is not None
    assert written.tokenizer.end_ids == {257, 258, 259, 260, 261}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": [258, 259]}, {}, {257, 258, 259}),
        ({"eos_token_id": 258}, {"eos_token_id": 259}, {257, 258, 259}),
        ({"eos_token_id": 2}, {"eos_token_id": 259}, {257, 259}),  # a library's default: here a letter
        ({"eos_token_id": [258, "x", -1, 10**9, None]}, {"eos_token_id": "<a>"}, {257, 258}),
        ({"eos_token_id": None}, {"eos_token_id": []}, {257}),
    ],
)
def test_ends_of_the_two_configurations(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], expected: set[int]
) -> None:
    source = model(tmp_path / "m", vocabulary("<a>", "<b>"), **generation)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    tokenizer = edgekit.open(source).tokenizer
    assert tokenizer is not None
    assert tokenizer.end_ids == expected


def test_ids_beyond_the_vocabulary_end_nothing_by_their_text() -> None:
    assert end_ids(("a", "<eos>"), (0, 5)) == {0, 1, 5}


TEMPLATES = {"default": "{{ 'd' }}", "tool_use": "{{ 't' }}", "rag": "{{ 'r' }}"}


def test_templates_go_to_gguf_as_its_own_library_writes_them_and_back(tmp_path: Path) -> None:
    source = model(tmp_path / "m", vocabulary())
    listed = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))
    written = edgekit.convert(source, tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_chat_template(listed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours, theirs = (gguf.GGUFReader(tmp_path / name).fields for name in ("m.gguf", "theirs.gguf"))
    assert {key for key in ours if "chat_template" in key} == {key for key in theirs if "chat_template" in key}
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use", "tokenizer.chat_template.rag"):
        assert ours[key].contents() == theirs[key].contents()
    assert set(ours["tokenizer.chat_templates"].contents()) == {"tool_use", "rag"}
    edgekit.convert(written, tmp_path / "back")
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == TEMPLATES


def test_templates_in_files_are_carried_as_files(tmp_path: Path) -> None:
    source = model(tmp_path / "m", vocabulary())
    (source / "chat_template.jinja").write_text(TEMPLATES["default"])
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATES["tool_use"])
    expected = {"default": TEMPLATES["default"], "tool_use": TEMPLATES["tool_use"]}
    for number in range(2):  # a second time over what the first has written
        copy = edgekit.quantize(source, "affine:int8-sym-g32", to=tmp_path / "q")
        assert AutoTokenizer.from_pretrained(tmp_path / "q").chat_template == expected, number
    assert copy.tokenizer is not None
    assert (copy.tokenizer.chat_template, copy.tokenizer.chat_templates) == ("{{ 'd' }}", {"tool_use": "{{ 't' }}"})
    assert edgekit.convert(source, tmp_path / "m.gguf").config["tokenizer.chat_template.tool_use"] == "{{ 't' }}"


def test_a_model_with_one_template_of_another_name_chats_with_it(tmp_path: Path) -> None:
    source = model(tmp_path / "m", vocabulary())
    path = source / "tokenizer_config.json"
    listed = [{"name": "tool_use", "template": "x"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))
    for artifact in (edgekit.open(source), edgekit.convert(source, tmp_path / "m.gguf")):
        assert template_of(artifact) == "x"
    assert "tokenizer.chat_template" not in edgekit.open(tmp_path / "m.gguf").config
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"chat_template": [*listed, {"name": "rag", "template": "y"}]})
    )
    with pytest.raises(UsageError, match=r"chat templates \(tool_use, rag\) none is the default one"):
        template_of(edgekit.open(source))
