"""Tokenizers through GGUF: llama.cpp cuts texts as the `tokenizers` library does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

import edgekit
from edgekit.architectures import Model, ModelConfig, tensor_shapes
from edgekit.artifact import Artifact
from edgekit.tensor import Tensor
from edgekit.tokenizer import Tokenizer, TokenType, from_hf_directory

TEXTS = [
    "Once upon a time there was a robot named Ada.",
    "  two spaces,   three; a tab\tand\nlines\n\n\nend ",
    "I'll say it's 12345 o'clock, WE'RE LATE!",
    "naïve café — 東京 🙂 Ωμέγα",
    "x=1+2*3; // code\n    return None",
    "a<|end|>b",
]
CORPUS = [*TEXTS, *(f"The story number {i} is about {w} and time." for i in range(40) for w in ("rain", "a café"))]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(expression: str | None, whole_words: bool) -> str:
    """tokenizer.json of a byte-level BPE trained on the corpus."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if expression is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(expression), "isolated", invert=False)
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.ignore_merges = whole_words
    return tokenizer.to_str()


def sentencepiece() -> Tokenizer:
    """A SentencePiece-like vocabulary: pieces with scores, bytes as fallback."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = sorted((p for p in learned if p.replace("▁", "").isascii()), key=learned.get)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return Tokenizer("spm", tuple(tokens), tuple(types), tuple(scores), bos=1, eos=2, unk=0)


def with_tokenizer(tokenizer: Tokenizer) -> Artifact:
    """A model of one small layer around it."""
    config = ModelConfig(
        family="llama", layers=1, width=32, heads=2, kv_heads=2, head_dim=16, ffn=32, vocab=len(tokenizer.tokens) + 3,
        context=64, norm_eps=1e-5, rope_theta=1e4, attention_scale=0.25, rotary_dim=16,
    )  # fmt: skip
    tensors = {name: Tensor.of(name, np.ones(shape, np.float32)) for name, shape in tensor_shapes(config).items()}
    return Artifact(Path("one"), "memory", (), {}, tensors, lambda: Model(config, tensors), lambda: tokenizer)


@pytest.fixture
def llama_tokenize(tmp_path: Path) -> Iterator[object]:
    """``llama_tokenize(tokenizer)(text)``: ids by llama.cpp, from a file that edgekit wrote."""
    opened: list[llama_cpp.Llama] = []

    def load(tokenizer: Tokenizer) -> object:
        path = tmp_path / "vocab.gguf"
        edgekit.convert(with_tokenizer(tokenizer), path, dtype="F32")
        opened.append(llama_cpp.Llama(str(path), vocab_only=True, verbose=False))
        return lambda text: opened[-1].tokenize(text.encode(), add_bos=False, special=True)

    yield load
    for model in opened:
        model.close()


@pytest.mark.parametrize(("pre", "expression"), [("gpt-2", None), ("llama-bpe", LLAMA3), ("qwen2", QWEN2)])
def test_byte_level_bpe(pre: str, expression: str | None, llama_tokenize, tmp_path: Path):
    directory = tmp_path / "hf"
    directory.mkdir()
    (directory / "tokenizer.json").write_text(byte_level(expression, pre == "llama-bpe"), "utf-8")
    (directory / "config.json").write_text("{}")
    tokenizer = from_hf_directory(directory)
    assert tokenizer is not None
    assert tokenizer.pre == pre
    library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenize = llama_tokenize(tokenizer)
    for text in TEXTS:
        assert tokenize(text) == library.encode(text, add_special_tokens=False).ids, text


def test_sentencepiece(llama_tokenize):
    tokenizer = sentencepiece()
    tokenize = llama_tokenize(tokenizer)
    for text in TEXTS:
        assert tokenize(text) == tokenizer.encode(text, add_special=False), text
