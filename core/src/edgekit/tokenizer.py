"""Tokenizers as data, the same for every file format; text goes through the `tokenizers` library."""

from __future__ import annotations

import enum
from typing import Literal

import attrs


class TokenType(enum.IntEnum):
    """What a token is; the values are GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@attrs.frozen(eq=False)
class Tokenizer:
    """A vocabulary and the rules that cut text into it.

    Attributes:
        kind: ``spm`` (SentencePiece: pieces with scores, bytes as fallback) or ``bpe`` (byte-level, ranked merges).
        tokens: the token of each id, in the vocabulary's own alphabet (``▁the``, ``Ġthe``).
        types: what each token is.
        scores: of each token (``spm``); empty for ``bpe``.
        merges: ``"left right"``, most urgent first (``bpe``); empty for ``spm`` that has none.
        pre: name of the pre-tokenizer as llama.cpp knows it (``gpt-2``, ``llama-bpe``, ``qwen2`` …); ``default`` for ``spm``.
        bos, eos, unk, pad: special ids, or None.
        add_bos, add_eos: whether encoding adds them.
        add_space_prefix: whether a text is given a leading space (``spm``).
        chat_template: Jinja source, or None. Never run by edgekit's core.
        json: the text of a ``tokenizer.json`` that says the same in the `tokenizers` library's own form, or None.
    """

    kind: Literal["spm", "bpe"]
    tokens: tuple[str, ...] = attrs.field(repr=False)
    types: tuple[TokenType, ...] = attrs.field(repr=False)
    scores: tuple[float, ...] = attrs.field(default=(), repr=False)
    merges: tuple[str, ...] = attrs.field(default=(), repr=False)
    pre: str = "default"
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    add_bos: bool = True
    add_eos: bool = False
    add_space_prefix: bool = True
    chat_template: str | None = attrs.field(default=None, repr=False)
    json: str | None = attrs.field(default=None, repr=False)
