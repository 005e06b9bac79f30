"""Tokenizer records: read from directories, built, cut and put together again."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from edgekit.errors import InvalidFileError, MissingPluginError, UnsupportedModelError, UsageError
from edgekit.tokenizer import Tokenizer, TokenType, from_hf_directory, pretokenizers
from edgekit.tokenizer._sentencepiece import parse
from edgekit.tokenizer._tokenizer_json import merges_from_scores
from edgekit.tokenizer._vocabulary import byte_alphabet
from edgekit.tokenizer.pretokenizers import EXPRESSIONS

try:
    import tokenizers
except ImportError:
    tokenizers = None
needs_tokenizers = pytest.mark.skipif(tokenizers is None, reason="edgekit-core[text] is not installed")

N, U, C, D, B = (
    TokenType.NORMAL,
    TokenType.UNKNOWN,
    TokenType.CONTROL,
    TokenType.USER_DEFINED,
    TokenType.BYTE,
)
PIECES = ["▁", "a", "b", "c", "ab", "▁a", "abc", "▁ab", "é"]


def spm(**changes: Any) -> Tokenizer:
    """A small SentencePiece vocabulary with every byte."""
    tokens = ("<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *PIECES, "<|x|>")
    types = (U, C, C, *(B for _ in range(256)), *(N for _ in PIECES), D)
    scores = (*(0.0 for _ in range(259)), *(-float(n) for n, _ in enumerate(PIECES)), 0.0)
    return attrs.evolve(Tokenizer("spm", tokens, types, scores, bos=1, eos=2, unk=0), **changes)


def bpe(**changes: Any) -> Tokenizer:
    """A small byte-level vocabulary."""
    letters = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    merges = ("a b", "Ġ ab", "1 2", "ab c")
    tokens = (*letters, *(merge.replace(" ", "") for merge in merges), "<|end|>", "<|x|>")
    types = (*(N for _ in range(len(letters) + len(merges))), C, D)
    end = len(tokens) - 2
    made = Tokenizer("bpe", tokens, types, merges=merges, pre="qwen2", eos=end, add_bos=False, add_space_prefix=False)
    return attrs.evolve(made, **changes)


def put_json(directory: Path, text: str, **config: Any) -> Path:
    (directory / "tokenizer.json").write_text(text, "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


# --- the record as tokenizer.json, and back ----------------------------------------------------------------------


def test_a_record_survives_its_tokenizer_json(tmp_path: Path) -> None:
    for made in (spm(), spm(add_space_prefix=False), bpe(), bpe(pre="llama-bpe"), bpe(pre="smollm")):
        names = {f"{role}_token": getattr(made, role) for role in ("bos", "eos", "unk")}
        config = {role: made.tokens[n] for role, n in names.items() if n is not None}
        read = from_hf_directory(put_json(tmp_path, made.to_json(), **config))
        assert read is not None
        for field in ("kind", "tokens", "types", "merges", "bos", "eos", "unk", "pad", "pre", "add_space_prefix"):
            assert getattr(read, field) == getattr(made, field), field
        assert (read.add_bos, read.add_eos) == (made.add_bos and made.bos is not None, made.add_eos)
        assert read.json == made.to_json()
        assert attrs.evolve(read, json=None).to_json() == made.to_json()


def test_merges_follow_the_scores() -> None:
    assert merges_from_scores(spm()) == [("a", "b"), ("▁", "a"), ("ab", "c"), ("▁", "ab"), ("▁a", "b")]


def test_scores_come_from_the_merges_where_nothing_else_says_them(tmp_path: Path) -> None:
    read = from_hf_directory(put_json(tmp_path, spm().to_json()))
    assert read is not None
    assert merges_from_scores(read) == merges_from_scores(spm())


def test_scores_come_from_tokenizer_model_where_it_has_the_same_pieces(tmp_path: Path) -> None:
    made = spm()
    count = len(made.tokens) - 1  # the last one was added later
    pieces = zip(made.tokens[:count], (-2.5 * n for n in range(count)), made.types[:count], strict=True)
    (tmp_path / "tokenizer.model").write_bytes(model_proto(pieces))
    read = from_hf_directory(put_json(tmp_path, made.to_json()))
    assert read is not None
    assert read.scores == (*(-2.5 * n for n in range(count)), 0.0)


@pytest.mark.parametrize("pre", pretokenizers.EXPRESSIONS)
def test_pre_tokenizers_are_recognised(tmp_path: Path, pre: str) -> None:
    read = from_hf_directory(put_json(tmp_path, bpe(pre=pre).to_json()))
    assert read is not None
    assert read.pre == pre


@pytest.mark.parametrize("alias", pretokenizers.ALIASES)
def test_other_names_mean_the_same(alias: str) -> None:
    assert bpe(pre=alias).to_json() == bpe(pre=pretokenizers.ALIASES[alias]).to_json()


def test_contractions_are_spelled_in_several_ways() -> None:
    spelled = pretokenizers.EXPRESSIONS["qwen2"][0].replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    split = {"type": "Split", "pattern": {"Regex": spelled}}
    assert pretokenizers.from_json({"type": "Sequence", "pretokenizers": [split]}, False) == "qwen2"


@pytest.mark.parametrize(
    "pre_tokenizer",
    [None, {"type": "Whitespace"}, {"type": "Split", "pattern": {"Regex": "x"}}, {"type": "Split", "pattern": {}}],
)
def test_a_pre_tokenizer_without_a_name_still_cuts_by_its_json(tmp_path: Path, pre_tokenizer: Any) -> None:
    parsed = json.loads(bpe().to_json())
    parsed["pre_tokenizer"] = pre_tokenizer
    read = from_hf_directory(put_json(tmp_path, json.dumps(parsed)))
    assert read is not None
    assert read.pre == ""
    assert read.to_json() == json.dumps(parsed)
    with pytest.raises(UnsupportedModelError, match=r"^pre-tokenizer '' is not known to edgekit, which knows gpt-2, "):
        attrs.evolve(read, json=None).to_json()


def test_a_pre_tokenizer_that_edgekit_is_taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPRESSIONS", "WHOLE_WORDS", "NFC"):
        monkeypatch.setattr(pretokenizers, name, getattr(pretokenizers, name).copy())
    parsed = json.loads(bpe().to_json())
    parsed["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated"}
    assert from_hf_directory(put_json(tmp_path, json.dumps(parsed))).pre == ""
    pretokenizers.register("letters", r"\p{L}+", nfc=True)
    pretokenizers.register("letters", r"\p{L}+")  # the same again
    read = from_hf_directory(put_json(tmp_path, json.dumps(parsed)))
    assert read.pre == "letters"
    made = json.loads(attrs.evolve(read, json=None).to_json())
    assert made["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": r"\p{L}+"}
    assert made["normalizer"] == {"type": "NFC"}
    with pytest.raises(UsageError, match="letters has other expressions in edgekit already"):
        pretokenizers.register("letters", "x")
    with pytest.raises(UsageError, match="at least one expression"):
        pretokenizers.register("digits")


# --- texts -------------------------------------------------------------------------------------------------------


@needs_tokenizers
def test_sentencepiece_texts() -> None:
    tokenizer = spm()
    assert [tokenizer.tokens[n] for n in tokenizer.encode("abc ab\né")] == [
        "<s>",
        *("▁", "abc", "▁ab", "<0x0A>", "é"),  # abc scores higher than ▁ab
    ]
    assert [tokenizer.tokens[n] for n in tokenizer.encode("ab<|x|>🙂", add_special=False)] == [
        *("▁ab", "<|x|>", "▁", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"),
    ]
    assert spm(add_space_prefix=False).encode("ab") == [1, tokenizer.tokens.index("ab")]
    assert spm(add_eos=True, add_bos=False).encode("") == [2]
    assert spm(bos=None).encode("") == []


@needs_tokenizers
def test_byte_level_texts() -> None:
    tokenizer = bpe()
    assert [tokenizer.tokens[n] for n in tokenizer.encode("abc ab<|end|>12")] == [
        *("abc", "Ġab", "<|end|>", "1", "2"),
    ]
    assert bpe(pre="llama-bpe").encode("12") == [tokenizer.tokens.index("12")]


@needs_tokenizers
@pytest.mark.parametrize("tokenizer", [spm(), spm(add_space_prefix=False), bpe(pre="llama-bpe"), bpe(pre="gpt-2")])
def test_texts_come_back(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    pieces = [
        "a",
        "b",
        "abc",
        " ",
        "  ",
        "\n",
        "\t",
        "\0",
        "é",
        "e\u0301",
        "日本",
        "🙂",
        "👩\u200d👧",
        "12",
        "<0x41>",
        "\ufffd",
    ]
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=rng.randrange(20)))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == ids


@needs_tokenizers
@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "▁" not in text))
def test_any_text_comes_back(text: str) -> None:
    for tokenizer in (SPM, BPE):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False).removeprefix("<s>").removeprefix(" ") in (
            text,
            text.removeprefix(" "),
        )


SPM, BPE = spm(), bpe(pre="gpt-2")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=20))
def test_any_bytes_decode_as_python_decodes_them(content: bytes) -> None:
    expected = content.decode("utf-8", "replace")
    assert spm(add_space_prefix=False).decode([3 + byte for byte in content]) == expected
    letters = {letter: n for n, letter in enumerate(BPE.tokens)}
    by_byte = {byte: letters[letter] for letter, byte in byte_alphabet().items()}
    assert BPE.decode([by_byte[byte] for byte in content]) == expected


KINDS = [spm(), spm(add_space_prefix=False), bpe()]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_ids_one_at_a_time_decode_as_all_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any ids: bytes that are half a character, special tokens, and ids beyond the vocabulary among them."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer.tokens) + 3), max_size=40))
    text = tokenizer.detokenizer()
    pieces = [text.add(number) for number in ids]
    assert "".join(pieces) + text.end() == tokenizer.decode(ids)


@needs_tokenizers
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), st.data())
def test_what_follows_a_prompt_decodes_as_its_end(tokenizer: Tokenizer, prompt: str, data: st.DataObject) -> None:
    before = tokenizer.encode(prompt)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer.tokens) - 1), max_size=20))
    text = tokenizer.detokenizer(before)
    pieces = [text.add(number) for number in ids]
    assert "".join(pieces) + text.end() == tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]


def test_pieces_are_whole_characters() -> None:
    text = bpe().detokenizer()
    assert [text.add(number) for number in "a🦊é".encode()] == ["a", "", "", "", "🦊", "", "é"]
    assert (text.add(0xE2), text.end()) == ("", "\ufffd")
    with pytest.raises(UsageError, match="token id -1; ids are 0 to "):
        text.add(-1)


@needs_tokenizers
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*KINDS, bpe(pre="llama-bpe"), bpe(pre="gpt-2")]),
    st.text(st.sampled_from("ab 1é\u0301\u1112\u1161\u11ab\u212a\u2126\U0002f800<|x|>\n日▁"), max_size=60),
)
def test_no_text_has_fewer_tokens_than_its_bytes_allow(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text, add_special=False))


@needs_tokenizers
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([bpe(pre="qwen2"), bpe(pre="llama-bpe"), bpe(pre="gpt-2")]),
    st.lists(
        st.sampled_from(["ab", " ab", "12", "  ", "\n", "é", "'s", "<|x|>", "abc" * 90, "日"]), min_size=1, max_size=9
    ),
    st.integers(1, 12),
)
def test_no_text_has_fewer_tokens_than_its_beginning(tokenizer: Tokenizer, parts: list[str], enough: int) -> None:
    text = "".join(parts) * 40
    assert tokenizer.least_tokens(text, enough) <= len(tokenizer.encode(text, add_special=False))


@needs_tokenizers
def test_bytes_that_a_vocabulary_does_not_have() -> None:
    first = bpe(pre="llama-bpe")
    letter = next(letter for letter, byte in byte_alphabet().items() if byte == 4)
    without = attrs.evolve(first, tokens=tuple("[none]" if token == letter else token for token in first.tokens))
    assert without.encode("\x04" * 100) == []
    assert without.least_tokens("\x04" * 100) == 0
    assert without.least_tokens("a\x04" * 700) == first.least_tokens("a" * 700) == 100
    holes = spm(tokens=tuple("[none]" if token == "<0x04>" else token for token in spm().tokens))
    assert holes.least_tokens("a" * 700) == 0, "unknown letters may become one token"


@needs_tokenizers
def test_a_long_token_hides_no_long_text() -> None:
    """One token of 700 bytes: the bytes alone allow 10,000 words to be 72 tokens."""
    first = bpe(pre="llama-bpe")
    long = attrs.evolve(first, tokens=(*first.tokens, "=" * 700), types=(*first.types, N))
    text = "ab 12 " * 10_000
    assert long.least_tokens(text) == 86
    assert long.least_tokens(text, 100) > 100
    assert long.least_tokens("a" * 60_000, 100) == 86, "one word: nothing is known of its tokens"
    assert len(long.encode("=" * 700 * 90)) >= long.least_tokens("=" * 700 * 90, 89)


@needs_tokenizers
def test_the_least_number_of_tokens() -> None:
    assert bpe(pre="llama-bpe").least_tokens("a" * 700) == 100, "<|end|> has seven bytes"
    assert bpe(pre="qwen2").least_tokens("a" * 700) == 34, "NFC shortens a text to a third at most"
    assert spm().least_tokens("a" * 600) == spm().least_tokens("▁" * 600) == 120, (
        "<|x|> has five; <0x00> stands for one"
    )


@needs_tokenizers
@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}},
        {"added_tokens": [{"id": 260, "content": "<|end|>", "special": True, "single_word": False, "lstrip": False,
                           "rstrip": True, "normalized": False}]},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_where_a_texts_length_says_nothing(change: dict[str, Any]) -> None:
    content = json.loads(bpe(pre="llama-bpe").to_json())
    tokenizer = bpe(json=json.dumps(content | change))
    assert tokenizer.least_tokens("a" * 10_000) == 0


@needs_tokenizers
def test_long_texts_are_cut_as_short_ones() -> None:
    for tokenizer in KINDS:
        line = "abc ab 12 é日\n"
        short = tokenizer.encode(line * 20, add_special=False)
        long = tokenizer.encode(line * 4000, add_special=False)
        assert len(line) * 4000 > 16_384 > len(line) * 20
        assert long[: len(short) - 5] == short[:-5]
        assert tokenizer.decode(long) == line * 4000


def test_special_tokens_are_left_out_or_shown() -> None:
    tokenizer = spm()
    ids = [1, tokenizer.tokens.index("▁ab"), tokenizer.tokens.index("<|x|>"), 2, 0]
    assert tokenizer.decode(ids) == "ab<|x|>"
    assert tokenizer.decode(ids, skip_special=False) == "<s> ab<|x|></s><unk>"


def test_ids_beyond_the_vocabulary() -> None:
    assert spm().decode([100_000, 3 + ord("a")]) == "a"
    with pytest.raises(UsageError, match=r"^token id -1; ids are 0 to 268$"):
        spm().decode([-1])


@needs_tokenizers
def test_half_a_character_is_no_text() -> None:
    with pytest.raises(UsageError, match=r"^the text is not Unicode text: surrogates not allowed at character 1$"):
        spm().encode("a\ud800")


@needs_tokenizers
def test_a_tokenizer_json_that_the_library_refuses() -> None:
    with pytest.raises(InvalidFileError, match=r"^the tokenizers library refuses the tokenizer: "):
        spm(json='{"model": {"type": "BPE"}}').encode("a")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingPluginError, match=r"pip install 'edgekit-core\[text\]'$"):
        spm().encode("a")


# --- what a directory says besides -------------------------------------------------------------------------------


def test_no_tokenizer(tmp_path: Path) -> None:
    assert from_hf_directory(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "one"}}, "one"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "a", "template": "x"}]}}, None),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
                }
            },
            "y",
        ),
        ({"chat_template.json": {"chat_template": "beside"}}, "beside"),
        ({"tokenizer_config.json": {"chat_template": "one"}, "chat_template.jinja": "newest"}, "newest"),
    ],
)
def test_chat_templates(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    put_json(tmp_path, bpe().to_json())
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    read = from_hf_directory(tmp_path)
    assert read is not None
    assert read.chat_template == expected


def test_special_tokens_by_name_by_object_and_by_number(tmp_path: Path) -> None:
    put_json(tmp_path, spm().to_json(), bos_token="<s>")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 7, "eos_token_id": 7, "pad_token_id": [5, 6]}))
    read = from_hf_directory(tmp_path)
    assert read is not None
    assert (read.bos, read.eos, read.pad, read.unk) == (1, 2, 5, 0)


def test_a_special_token_that_the_configuration_takes_away(tmp_path: Path) -> None:
    put_json(tmp_path, spm().to_json(), bos_token=None)
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1}))
    read = from_hf_directory(tmp_path)
    assert read is not None
    assert (read.bos, read.add_bos) == (None, False)


@pytest.mark.parametrize(("given_flag", "expected"), [(None, True), (False, False), (True, True)])
def test_the_flag_overrides_the_template(tmp_path: Path, given_flag: bool | None, expected: bool) -> None:
    read = from_hf_directory(put_json(tmp_path, spm().to_json(), bos_token="<s>", add_bos_token=given_flag))
    assert read is not None
    assert read.add_bos is expected


def test_ids_without_a_token_are_filled(tmp_path: Path) -> None:
    parsed = json.loads(bpe().to_json())
    parsed["added_tokens"].append({"id": 300, "content": "<|late|>", "special": True})
    read = from_hf_directory(put_json(tmp_path, json.dumps(parsed)))
    assert read is not None
    assert (len(read.tokens), read.tokens[290], read.types[290]) == (301, "[PAD290]", TokenType.UNUSED)
    assert (read.tokens[300], read.types[300]) == ("<|late|>", TokenType.CONTROL)


def test_vocab_and_merges(tmp_path: Path) -> None:
    made = bpe(pre="gpt-2")
    words = {token: n for n, token in enumerate(made.tokens[:-2])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\n" + "\r\n".join(made.merges) + "\n", "utf-8")
    added = {str(len(words)): {"content": "<|end|>", "special": True}, str(len(words) + 1): {"content": "<|x|>"}}
    settings = {"tokenizer_class": "GPT2TokenizerFast", "eos_token": "<|end|>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = from_hf_directory(tmp_path)
    assert read is not None
    for field in ("kind", "tokens", "types", "merges", "pre", "eos", "add_bos"):
        assert getattr(read, field) == getattr(made, field), field


def test_vocab_and_merges_of_an_unknown_class(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UnsupportedModelError, match=r"names the class None; edgekit supports Qwen2Tokenizer, GPT2"):
        from_hf_directory(tmp_path)


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model"])
def test_tokenizers_in_files_that_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(UnsupportedModelError, match=f"its tokenizer is in {name}; edgekit reads tokenizer.json"):
        from_hf_directory(tmp_path)


def without(parsed: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in parsed.items() if k != key}


def model(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda parsed: {**parsed, "model": {**parsed["model"], **changes}}


def added(*entries: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda parsed: {**parsed, "added_tokens": list(entries)}


BAD: Mapping[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "no model": (lambda p: without(p, "model"), InvalidFileError, "describes no model"),
    "a list": (lambda p: [p], InvalidFileError, "describes no model"),
    "Unigram": (model(type="Unigram"), UnsupportedModelError, "its model is Unigram; edgekit supports byte-level BPE"),
    "WordLevel": (model(type="WordLevel"), UnsupportedModelError, "its model is WordLevel"),
    "characters": (
        lambda p: {**p, "pre_tokenizer": None, "decoder": None},
        UnsupportedModelError,
        "its model is BPE over characters",
    ),
    "no vocabulary": (model(vocab=None), InvalidFileError, "its vocabulary is not a mapping"),
    "an id that is text": (model(vocab={"a": "0"}), InvalidFileError, "'0' is not a token id"),
    "an id that is negative": (model(vocab={"a": -1}), InvalidFileError, "-1 is not a token id"),
    "an id that is huge": (model(vocab={"a": 1 << 40}), InvalidFileError, "1099511627776 is not a token id"),
    "an id used twice": (model(vocab={"a": 1, "b": 1}), InvalidFileError, "two tokens share an id"),
    "too many holes": (model(vocab={"a": 1 << 20}), InvalidFileError, "1 tokens have ids up to 1048576"),
    "merges of numbers": (model(merges=[1]), InvalidFileError, "its merges are not a list of pairs"),
    "a merge of three": (model(merges=[["a", "b", "c"]]), InvalidFileError, "its merges are not a list of pairs"),
    "merges missing": (model(merges=None), InvalidFileError, "its merges are not a list of pairs"),
    "added tokens of numbers": (added(1), InvalidFileError, "added_tokens is not a list of objects"),
    "an added token without id": (added({"content": "x"}), InvalidFileError, "None is not a token id"),
    "an added token without content": (added({"id": 1}), InvalidFileError, "an added token without content"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tokenizer_json(tmp_path: Path, case: str) -> None:
    change, kind, message = BAD[case]
    spoiled = change(json.loads(bpe().to_json()))
    if isinstance(spoiled, dict) and "added" not in case:
        spoiled = {**spoiled, "added_tokens": []}
    with pytest.raises(kind) as caught:
        from_hf_directory(put_json(tmp_path, json.dumps(spoiled)))
    assert str(caught.value).startswith(f"{tmp_path}/tokenizer.json: {message}")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_tokenizer_json_gives_typed_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    odd = st.sampled_from([None, 1, "x", [], {}, [1], ["x"], {"type": "ByteLevel"}, [{}], True, -1.5])
    parsed = json.loads(spm().to_json() if data.draw(st.booleans(), label="spm") else bpe().to_json())
    where: Any = parsed
    for _ in range(data.draw(st.integers(0, 2), label="depth")):
        keys = [k for k, v in where.items() if isinstance(v, dict) and v]
        where = where[data.draw(st.sampled_from(keys), label="into")] if keys else where
    where[data.draw(st.sampled_from(sorted(where)), label="key")] = data.draw(odd, label="value")
    config = {data.draw(st.sampled_from(["bos_token", "added_tokens_decoder", "chat_template"])): data.draw(odd)}
    directory = tmp_path_factory.mktemp("t")
    try:
        from_hf_directory(put_json(directory, json.dumps(parsed), **config))
    except (InvalidFileError, UnsupportedModelError) as error:
        assert str(directory) in str(error)


# --- SentencePiece's own file ------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def model_proto(pieces: Any, trainer: bytes = b"\x18\x02", normalizer: bytes = b"") -> bytes:
    """A SentencePiece model; ``18 02`` is ``model_type: BPE``."""
    encoded = [
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
        for text, score, kind in pieces
    ]
    return b"".join(encoded) + field(2, trainer) + field(3, normalizer)


THREE = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁a", -1.5, 1)]


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_proto(THREE, normalizer=b"\x18\x00"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|x|>": 4, "<|end|>": 5}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    read = from_hf_directory(tmp_path)
    assert read is not None
    assert read.tokens == ("<unk>", "<s>", "</s>", "▁a", "<|x|>", "<|end|>")
    assert read.types == (U, C, C, N, D, C)
    assert read.scores == (0.0, 0.0, 0.0, -1.5, 0.0, 0.0)
    assert (read.bos, read.eos, read.unk, read.pad) == (1, 5, 0, None)
    assert (read.add_bos, read.add_eos, read.add_space_prefix) == (True, False, False)


@pytest.mark.parametrize(
    ("trainer", "normalizer", "message"),
    [
        (b"", b"", "is of type 1, not BPE (2)"),
        (b"\x18\x02", field(2, b"table"), "normalizes texts by a table"),
    ],
)
def test_other_sentencepiece_models(tmp_path: Path, trainer: bytes, normalizer: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_proto(THREE, trainer, normalizer))
    with pytest.raises(UnsupportedModelError) as caught:
        from_hf_directory(tmp_path)
    where = f"{tmp_path}/tokenizer.model: this SentencePiece model"
    assert str(caught.value) == f"{where} {message}; edgekit supports BPE without such a table"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pieces; this is not a SentencePiece model"),
        (b"\x0a\xff\xff\xff\xff\x7f", "a field of 34,359,738,367 bytes with 0 left at byte 6"),
        (b"\x0a\x05\x0a\x7fabc", "a field of 127 bytes with 3 left at byte 4"),
        (b"\xff" * 11, "an endless number at byte 0"),
        (b"\x0a", "an endless number at byte 1"),
        (b"\x0b", "wire type 3 at byte 1"),
        (b"\x0a\x03\x0a\x01\xff", "a piece that is not UTF-8 at byte 4"),
        (b"\x0a\x02\x18\x07", "a piece of type 7 at byte 2"),
        (b"\x0a\x03\x15\x00\x00", "a field of 4 bytes with 2 left at byte 3"),
    ],
)
def test_broken_sentencepiece_models(content: bytes, message: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse(content, Path("tokenizer.model"))
    assert str(caught.value).startswith(f"tokenizer.model: {message}")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_parse_or_are_refused(content: bytes, at: int, value: int) -> None:
    whole = bytearray(model_proto(THREE))
    whole[at % len(whole)] = value
    for candidate in (content, bytes(whole), bytes(whole)[: at % len(whole)]):
        try:
            assert parse(candidate, Path("tokenizer.model")).pieces
        except InvalidFileError:
            continue


@needs_tokenizers
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize("length", [60, 20_000])
def test_a_pattern_that_makes_the_library_panic_is_a_typed_error(part: str, length: int) -> None:
    """pyo3's PanicException is no `Exception`: it passes every handler, and ends what does not expect it."""
    from edgekit import sample

    content = json.loads((sample.path() / "tokenizer.json").read_text("utf-8"))
    pattern = {"Regex": "(x+x+)+y"}  # no match, and no end of ways to look for one
    content[part] = (
        {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        if part == "pre_tokenizer"
        else {"type": "Replace", "pattern": pattern, "content": "z"}
    )
    tokenizer = attrs.evolve(from_hf_directory(sample.path()), json=json.dumps(content))
    with pytest.raises(InvalidFileError, match=r"^the tokenizer: the library failed on it .*retry-limit-in-match over"):
        tokenizer.encode("x" * length)


@needs_tokenizers
def test_a_tokenizer_that_fails_on_a_text_is_a_typed_error() -> None:
    from edgekit import sample

    content = json.loads((sample.path() / "tokenizer.json").read_text("utf-8"))
    content["model"]["unk_token"] = "none"
    content["model"]["vocab"] = {"<s>": 0, "</s>": 1, "a": 2}
    content["model"]["merges"], content["added_tokens"] = [], content["added_tokens"][:2]
    tokenizer = attrs.evolve(from_hf_directory(sample.path()), json=json.dumps(content))
    with pytest.raises(
        InvalidFileError, match=r"^the tokenizers library cannot cut a text with the tokenizer: Unk tok"
    ):
        tokenizer.encode("b")


# --- tekken.json ------------------------------------------------------------------------------------------------

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]"]


def tekken(*longer: bytes) -> dict[str, Any]:
    tokens = [*(bytes([n]) for n in range(256)), *longer]
    vocab = [{"rank": n, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for n, t in enumerate(tokens)]
    config = {"pattern": EXPRESSIONS["tekken"][0], "default_num_special_tokens": 6}
    config |= {"default_vocab_size": 6 + len(tokens), "version": "v7"}
    special = [{"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(SPECIAL)]
    return {"config": config, "vocab": vocab, "special_tokens": special}


def test_tekken(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(b"he", b"ll", b"llo", b"hello", "é".encode())))
    read = from_hf_directory(tmp_path)
    assert read is not None
    assert read.tokens[:6] == (*SPECIAL, "<SPECIAL_4>", "<SPECIAL_5>")
    assert (read.bos, read.eos, read.unk, read.add_bos, read.add_eos, read.pre) == (1, 2, 0, True, False, "tekken")
    assert read.merges == ("h e", "l l", "ll o", "he llo", "Ã ©")
    assert read.types[6:] == (TokenType.NORMAL,) * 261
    assert read.encode("hello") == [1, 6 + 259]
    assert read.encode("[INST]llé", add_special=False) == [3, 6 + 257, 6 + 260]
    assert read.decode(read.encode("Ünï 42, hello\n")) == "Ünï 42, hello\n"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab": []}, InvalidFileError, "0 tokens are there for 256"),
        ({"special_tokens": []}, UnsupportedModelError, "it has no special_tokens"),
        ({"config": {}}, UnsupportedModelError, "its pattern is None; edgekit knows "),
        ({"config": 5}, InvalidFileError, "config is no object"),
        ({"special_tokens": [{"rank": 6, "token_str": "x"}]}, InvalidFileError, "is no special token of 6"),
        ({"special_tokens": [{"rank": n, "token_str": "x"} for n in (0, 1)]}, InvalidFileError, "have one text"),
        ({"vocab": [{"rank": 1, "token_bytes": "AA=="}] * 256}, InvalidFileError, "is no token of rank 0"),
        ({"vocab": [{"rank": 0, "token_bytes": "A"}] * 256}, InvalidFileError, "is no token of rank 0"),
    ],
)
def test_a_damaged_tekken_is_refused(tmp_path: Path, change: dict, error: type[Exception], message: str) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken() | change))
    with pytest.raises(error, match=message):
        from_hf_directory(tmp_path)
