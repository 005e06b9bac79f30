"""Tokenizers against llama.cpp, sentencepiece and transformers: the same ids for the same text."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import gguf
import llama_cpp
import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

import edgekit
from edgekit.formats import safetensors
from edgekit.tokenizer import Tokenizer, TokenType, from_hf_directory, pretokenizers
from edgekit.tokenizer._vocabulary import byte_alphabet

PIECES = [
    *("  ", " ", "\n", "\t", "\r\n", "\n\n", "\0", "\x7f", "\u200b", "\u00a0", "\u3000", "\ufeff", "▁"),
    *("a", "the", " a ", "Once", "upon", "A", "ABCdef", "don't", "'s", "'LL", "'ſ", "é", "À", "ÀÉ", "ǅ", "ß", "𝔘"),
    *("日本", "العربية", "🙂", "👩\u200d👩\u200d👧", "1", "23", "4567", "²", "Ⅷ"),
    *(".", ",", "!?", "/", "//", "_", "{", "}", "<0x41>", "<|x|>"),
]
WORDS = [
    *("Once", "upon", "a", "time", "there", "was", "the", "little", "girl", "named", "Lily's", "cat", "and", "it's"),
    *("don't", "we'll", "they've", "I'm", "he'd", "THE", "QUICK", "brown", "fox", "jumps", "over", "lazy", "dogs"),
    *("1", "12", "123", "2024", "foo_bar()", "{return}", "https://x.org/a/b?c=d", "--", "...", "!!!", "\t\t", ""),
    *("naïve", "café", "über", "日本語", "привет", "мир", "🙂🙂", "indented\n\nnew", "paragraph"),
]
MARKS = ("e\u0301", "क्षि")  # letters with combining marks

_SILENT = llama_cpp.llama_log_callback(lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def strings(count: int, *more: str, seed: int = 0) -> list[str]:
    """Texts made of pieces that tokenizers trip over; `more` are drawn along."""
    rng = random.Random(seed)
    pieces = [*PIECES, *more]
    return ["".join(rng.choices(pieces, k=rng.randrange(20))) for _ in range(count)]


def training_text() -> str:
    """Text to train small tokenizers on."""
    rng = random.Random(1)
    return "\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(1500))


def llama_ids(model: llama_cpp.Llama, text: str) -> list[int]:
    found: list[int] = model.tokenize(text.encode(), add_bos=False, special=True)
    return found


def complete(directory: Path, vocab: int) -> Path:
    """Make a directory with a tokenizer a whole model, so that it converts to GGUF."""
    width = 32
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    matrices = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    arrays = {f"model.layers.0.{name}.weight": np.ones((width, width), np.float32) for name in matrices}
    arrays |= {f"model.layers.0.{n}layernorm.weight": np.ones(width, np.float32) for n in ("input_", "post_attention_")}
    arrays |= {
        "model.embed_tokens.weight": np.ones((vocab, width), np.float32),
        "model.norm.weight": np.ones(width, np.float32),
    }
    safetensors.write(directory / "model.safetensors", arrays)
    return directory


def same(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    """Every text gives the same ids; the message shows the shortest that does not."""
    odd = [text for text in texts if ours.encode(text, add_special=False) != theirs(text)]
    worst = min(odd, key=len, default="")
    assert not odd, (
        f"{len(odd)} of {len(texts)} texts differ, such as {worst!r}: "
        f"{ours.encode(worst, add_special=False)} here, {theirs(worst)} there"
    )


# --- a real SentencePiece vocabulary -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(stories: Path) -> tuple[Tokenizer, llama_cpp.Llama]:
    tokenizer = edgekit.open(stories).tokenizer
    assert tokenizer is not None
    return tokenizer, llama_cpp.Llama(str(stories), vocab_only=True, verbose=False)


@pytest.mark.parametrize("text", ["stories_text", "sample_text", "wikitext"])
def test_long_texts_as_llama_cpp(
    vocabulary: tuple[Tokenizer, llama_cpp.Llama], text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer, model = vocabulary
    content = request.getfixturevalue(text)
    ids = tokenizer.encode(content)
    assert ids == model.tokenize(content.encode(), add_bos=True, special=True)
    assert tokenizer.decode(ids) == content.replace("▁", " ")


def test_adversarial_texts_as_llama_cpp(vocabulary: tuple[Tokenizer, llama_cpp.Llama]) -> None:
    tokenizer, model = vocabulary
    same(tokenizer, lambda text: llama_ids(model, text), strings(2000, *MARKS, "<s>", "</s>", "<unk>"))


def test_text_of_any_ids_as_llama_cpp(vocabulary: tuple[Tokenizer, llama_cpp.Llama]) -> None:
    tokenizer, model = vocabulary
    rng = random.Random(0)
    for _ in range(1000):
        ids = [403, *rng.choices(range(3, 512), k=rng.randrange(20))]  # " Once", and whatever follows
        expected = model.detokenize([1, *ids]).decode("utf-8", "replace").replace("▁", " ")
        assert tokenizer.decode([1, *ids]) == expected, ids


# --- SentencePiece models trained here ---------------------------------------------------------------------------


def train_sentencepiece(**options: Any) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text().splitlines()),
        model_writer=written,
        **{
            "vocab_size": 500,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "character_coverage": 0.995,
            "num_threads": 1,
            "minloglevel": 2,
            **options,
        },
    )
    return written.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_models(tmp_path: Path, prefix: bool) -> None:
    content = train_sentencepiece(add_dummy_prefix=prefix)
    (tmp_path / "tokenizer.model").write_bytes(content)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = from_hf_directory(tmp_path)
    assert tokenizer is not None
    assert tokenizer.tokens == tuple(processor.id_to_piece(n) for n in range(processor.get_piece_size()))
    assert tokenizer.scores == tuple(processor.get_score(n) for n in range(processor.get_piece_size()))
    assert tokenizer.add_space_prefix == prefix
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad) == (1, 2, 0, None)
    for n, kind in enumerate(tokenizer.types):
        asked = (processor.is_unknown(n), processor.is_control(n), processor.is_unused(n), processor.is_byte(n))
        wanted = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED, TokenType.BYTE)
        assert asked == tuple(kind == w for w in wanted), n
    texts = strings(2000, *MARKS)
    same(tokenizer, processor.encode, [*texts, training_text()])
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == processor.decode(processor.encode(text))


def test_ids_that_the_trainer_was_told(tmp_path: Path) -> None:
    content = train_sentencepiece(pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    (tmp_path / "tokenizer.model").write_bytes(content)
    tokenizer = from_hf_directory(tmp_path)
    assert tokenizer is not None
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.unk) == (0, 1, 2, 3)


def test_sentencepiece_models_in_llama_cpp(tmp_path: Path) -> None:
    """Through GGUF, user-defined tokens included, of which sentencepiece itself treats spaces otherwise."""
    (tmp_path / "m").mkdir()
    content = train_sentencepiece(user_defined_symbols=["<|x|>", "\n\n"], control_symbols=["<|end|>"])
    (tmp_path / "m" / "tokenizer.model").write_bytes(content)
    tokenizer = from_hf_directory(tmp_path / "m")
    assert tokenizer is not None
    written = edgekit.convert(complete(tmp_path / "m", len(tokenizer.tokens)), tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    texts = strings(2000, *MARKS, "<|end|>")
    same(tokenizer, lambda text: llama_ids(model, text), texts)
    assert written.tokenizer is not None
    same(written.tokenizer, lambda text: llama_ids(model, text), texts)


@pytest.mark.parametrize("prefix", [True, False])
def test_transformers_conversion_of_a_sentencepiece_model(tmp_path: Path, prefix: bool) -> None:
    (tmp_path / "m").mkdir()
    content = train_sentencepiece(add_dummy_prefix=prefix)
    (tmp_path / "m" / "tokenizer.model").write_bytes(content)
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": prefix, "add_bos_token": True}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    theirs.save_pretrained(tmp_path / "saved")
    ours = from_hf_directory(tmp_path / "saved")
    assert ours is not None
    assert (ours.kind, ours.add_space_prefix, ours.add_bos) == ("spm", prefix, True)
    for text in strings(500, *MARKS):
        assert ours.encode(text) == theirs(text).input_ids, text
    # Where a text begins with a space transformers adds no other; SentencePiece and llama.cpp do.
    rebuilt = attrs.evolve(ours, json=None)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    same(rebuilt, processor.encode, strings(500, *MARKS))


# --- byte-level BPE, every pre-tokenizer -------------------------------------------------------------------------


def train_bpe(pre: str, directory: Path) -> None:
    """A tokenizer.json made by the tokenizers library's own constructors, as the model's authors make it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(expression), "isolated") for expression in pretokenizers.EXPRESSIONS[pre]
    ]
    match pre:
        case "gpt-2":
            steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        case "smollm":
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        case _:
            steps = [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.normalizer = normalizers.NFC() if pre in ("qwen2", "qwen35") else None
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
    )
    tokenizer.train_from_iterator(training_text().splitlines(keepends=True), trainer)
    tokenizer.add_tokens(["<|x|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<|end|>", "eos_token": "<|end|>"}')


@pytest.mark.parametrize("pre", pretokenizers.EXPRESSIONS)
def test_byte_level_bpe(tmp_path: Path, pre: str) -> None:
    (tmp_path / "m").mkdir()
    train_bpe(pre, tmp_path / "m")
    tokenizer = from_hf_directory(tmp_path / "m")
    assert tokenizer is not None
    assert (tokenizer.kind, tokenizer.pre, tokenizer.add_bos) == ("bpe", pre, False)
    assert tokenizer.types[tokenizer.tokens.index("<|end|>")] == TokenType.CONTROL
    assert tokenizer.types[tokenizer.tokens.index("<|x|>")] == TokenType.USER_DEFINED

    library = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    texts = strings(1000, *MARKS, "<|end|>")
    same(tokenizer, lambda text: library.encode(text, add_special_tokens=False).ids, texts)
    rebuilt = attrs.evolve(tokenizer, json=None)
    same(rebuilt, lambda text: library.encode(text, add_special_tokens=False).ids, texts)
    for text in texts:
        plain = unicodedata.normalize("NFC", text) if pre in ("qwen2", "qwen35") else text
        assert rebuilt.decode(rebuilt.encode(text)) == plain.replace("<|end|>", "")

    edgekit.convert(complete(tmp_path / "m", len(tokenizer.tokens)), tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    texts = [text for text in strings(400, "<|end|>", seed=1) if not (pre in APPROXIMATE and beyond_ascii(text))]
    assert len(texts) > 100
    same(tokenizer, lambda text: llama_ids(model, text), texts)


#: llama.cpp's expressions for these know capitals of ASCII only, and no combining marks; it normalizes for none.
APPROXIMATE = ("tekken", "gpt-4o", "deepseek-llm")


def beyond_ascii(text: str) -> bool:
    """Whether there is a combining mark, or a capital beyond ASCII."""
    return any(unicodedata.category(c) in ("Lu", "Lt", "Mn", "Mc") and not c.isascii() for c in text)


@pytest.mark.parametrize("alias", pretokenizers.ALIASES)
def test_names_of_one_way_to_cut_words_are_one_in_llama_cpp(tmp_path: Path, alias: str) -> None:
    train_bpe(pretokenizers.ALIASES[alias], tmp_path)
    tokenizer = from_hf_directory(tmp_path)
    assert tokenizer is not None
    texts = strings(200, seed=3)
    first, second = (named(tmp_path / "v.gguf", tokenizer, pre) for pre in (alias, pretokenizers.ALIASES[alias]))
    for text in texts:
        assert llama_ids(first, text) == llama_ids(second, text), text


def named(path: Path, tokenizer: Tokenizer, pre: str) -> llama_cpp.Llama:
    """A vocabulary alone in a GGUF file, by gguf-py."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types([int(kind) for kind in tokenizer.types])
    writer.add_token_merges(list(tokenizer.merges))
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def test_llama_cpps_tekken_differs_only_beyond_ascii(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    train_bpe("tekken", tmp_path / "m")
    tokenizer = from_hf_directory(tmp_path / "m")
    assert tokenizer is not None
    edgekit.convert(complete(tmp_path / "m", len(tokenizer.tokens)), tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    texts = strings(1000, *MARKS * 4)
    odd = [text for text in texts if tokenizer.encode(text, add_special=False) != llama_ids(model, text)]
    assert odd, "llama.cpp has the original expression now: drop this test, and APPROXIMATE"
    assert all(beyond_ascii(text) for text in odd)


def test_tekken_says_what_tokenizer_json_says(tmp_path: Path) -> None:
    """Ranks instead of merges: the tokenizers library's own, trained, is the oracle; ids are moved by special ones."""
    train_bpe("tekken", tmp_path)
    whole = from_hf_directory(tmp_path)
    assert whole is not None
    alphabet = byte_alphabet()
    tokens = [bytes(alphabet[c] for c in token) for token in whole.tokens[1:-1]]  # all but <|end|> and <|x|>
    vocab = [{"rank": n, "token_bytes": base64.b64encode(token).decode()} for n, token in enumerate(tokens)]
    special = [{"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(("<unk>", "<s>", "</s>"))]
    config = {"pattern": pretokenizers.EXPRESSIONS["tekken"][0], "default_num_special_tokens": 3}
    config["default_vocab_size"] = 3 + len(tokens)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tekken.json").write_text(
        json.dumps({"config": config, "vocab": vocab, "special_tokens": special})
    )
    tekken = from_hf_directory(tmp_path / "t")
    assert tekken is not None
    texts = [text for text in strings(800) if not any(mark in text for mark in ("<|end|>", "<|x|>"))]
    assert len(texts) > 100
    for text in texts:
        assert [n - 2 for n in tekken.encode(text, add_special=False)] == whole.encode(text, add_special=False)


def test_vocab_and_merges_say_what_tokenizer_json_says(tmp_path: Path) -> None:
    train_bpe("qwen2", tmp_path)
    whole = from_hf_directory(tmp_path)
    parsed = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(parsed["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in parsed["model"]["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges + "\n", "utf-8")
    added = {str(t["id"]): {"content": t["content"], "special": t["special"]} for t in parsed["added_tokens"]}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<|end|>", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": added}))
    (tmp_path / "tokenizer.json").unlink()
    parts = from_hf_directory(tmp_path)
    assert whole is not None
    assert parts is not None
    for field in ("kind", "tokens", "types", "merges", "pre", "bos", "eos", "add_bos"):
        assert getattr(parts, field) == getattr(whole, field), field
    same(parts, lambda text: whole.encode(text, add_special=False), strings(500, *MARKS, "<|end|>"))
