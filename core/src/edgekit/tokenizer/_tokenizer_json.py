"""Writes a tokenizer record as tokenizer.json, which the `tokenizers` library and transformers read.

SentencePiece's BPE always merges the neighbours whose union has the highest score, the leftmost first; the
library merges the pair that comes first in its list. So every split of a piece into two known pieces
becomes a merge, in the order of the pieces' scores. The two agree wherever scores differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edgekit.errors import UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.tokenizer import pretokenizers
from edgekit.tokenizer._vocabulary import INSIDE, SPACE, TokenType, Vocabulary

#: Characters of a word beyond which WordPiece takes it for unknown.
LONGEST_WORD = 100


def build(tokenizer: Vocabulary) -> str:
    """Return the text of a tokenizer.json.

    Raises:
        UnsupportedModelError: a pre-tokenizer of unknown name.
    """
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(tokenizer)),
        **_PARTS[tokenizer.kind](tokenizer),
        "post_processor": _post_processor(tokenizer),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _added_tokens(tokenizer: Vocabulary) -> Iterator[dict[str, Any]]:
    """Return the tokens that are matched in a text before it is split."""
    types = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    for number, (token, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True)):
        if kind in types and token:
            yield {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != TokenType.USER_DEFINED,
            }


def _sentencepiece(tokenizer: Vocabulary) -> dict[str, Any]:
    prepend = [{"type": "Prepend", "prepend": SPACE}] if tokenizer.add_space_prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.add_space_prefix else []
    restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            **_model(tokenizer, [list(pair) for pair in merges_from_scores(tokenizer)]),
            "unk_token": None if tokenizer.unk is None else tokenizer.tokens[tokenizer.unk],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _byte_level(tokenizer: Vocabulary) -> dict[str, Any]:
    pre = pretokenizers.canonical(tokenizer.pre)
    if pre is None:
        known = ", ".join([*pretokenizers.EXPRESSIONS, *pretokenizers.ALIASES])
        raise UnsupportedModelError(
            f"pre-tokenizer {shown(tokenizer.pre)} is not known to edgekit, which knows {known}; open a directory with "
            "the model's tokenizer.json, or teach it with edgekit.tokenizer.pretokenizers.register(NAME, EXPRESSION)"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if pre in pretokenizers.NFC else None,
        "pre_tokenizer": pretokenizers.to_json(pre),
        "decoder": byte_level,
        "model": {
            **_model(tokenizer, [merge.split(" ", 1) for merge in tokenizer.merges]),
            "ignore_merges": pre in pretokenizers.WHOLE_WORDS,
        },
    }


def _wordpiece(tokenizer: Vocabulary) -> dict[str, Any]:
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": tokenizer.strip_accents,
            "lowercase": tokenizer.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": INSIDE, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]" if tokenizer.unk is None else tokenizer.tokens[tokenizer.unk],
            "continuing_subword_prefix": INSIDE,
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": {token: number for number, token in enumerate(tokenizer.tokens)},
        },
    }


_PARTS = {"spm": _sentencepiece, "bpe": _byte_level, "wordpiece": _wordpiece}


def _model(tokenizer: Vocabulary, merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokenizer.tokens)},
        "merges": merges,
    }


def merges_from_scores(tokenizer: Vocabulary) -> list[tuple[str, str]]:
    """Return every pair of pieces whose concatenation is a piece, highest score first, then by id."""
    merged = (TokenType.NORMAL, TokenType.USER_DEFINED)
    ids = {token: n for n, token in enumerate(tokenizer.tokens) if tokenizer.types[n] in merged}
    pairs = [
        (-tokenizer.scores[number], number, ids[token[:cut]], ids[token[cut:]])
        for token, number in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    pairs.sort()
    return [(tokenizer.tokens[left], tokenizer.tokens[right]) for _, _, left, right in pairs]


def _post_processor(tokenizer: Vocabulary) -> dict[str, Any]:
    """Return the post-processor that adds BOS before and EOS after a text, and each text of a pair."""
    before = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    after = [tokenizer.eos] if tokenizer.add_eos and tokenizer.eos is not None else []

    def template(letter: str, sentence: int) -> list[dict[str, Any]]:
        special = [
            [{"SpecialToken": {"id": tokenizer.tokens[n], "type_id": sentence}} for n in ids] for ids in (before, after)
        ]
        return [*special[0], {"Sequence": {"id": letter, "type_id": sentence}}, *special[1]]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            tokenizer.tokens[n]: {"id": tokenizer.tokens[n], "ids": [n], "tokens": [tokenizer.tokens[n]]}
            for n in {*before, *after}
        },
    }


__all__ = ["build", "merges_from_scores"]
