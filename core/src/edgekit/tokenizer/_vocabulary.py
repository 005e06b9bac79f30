"""A tokenizer's vocabulary as data, and the bytes of each token."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cache
from typing import Literal

import attrs

from edgekit.errors import UsageError

#: SentencePiece writes a space so.
SPACE = "▁"


class TokenType(enum.IntEnum):
    """The type of a token; the values are GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@attrs.frozen(eq=False)
class Vocabulary:
    """A vocabulary and the rules that cut text into it.

    Attributes:
        kind: ``spm`` (SentencePiece: pieces with scores, bytes as fallback) or ``bpe`` (byte-level, ranked merges).
        tokens: the token of each id, in the vocabulary's own alphabet (``▁the``, ``Ġthe``).
        types: what each token is.
        scores: of each token (``spm``); empty for ``bpe``.
        merges: ``"left right"``, most urgent first (``bpe``); empty for ``spm``, whose scores say the same.
        pre: name of the pre-tokenizer as llama.cpp knows it (``gpt-2``, ``llama-bpe``, ``qwen2`` …); ``default``
            for ``spm``; empty where edgekit knows no name of llama.cpp's for what `json` does.
        bos, eos, unk, pad: special ids, or None.
        ends: further ids that the model's files call an end of the text; `end_ids` has all of them.
        add_bos, add_eos: whether encoding adds them.
        add_space_prefix: whether a text is given a leading space (``spm``).
        chat_template: Jinja source, or None; `edgekit.runtime.chat` runs it, in a process that may only render.
        chat_templates: the model's other templates by name (``tool_use``, ``rag``).
        json: the text of a ``tokenizer.json`` that says the same in the `tokenizers` library's own form, or None.
        merged: how many of the tokens only files beside the vocabulary name (``tokenizer_config.json``,
            ``added_tokens.json``).
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
    ends: tuple[int, ...] = ()
    add_bos: bool = True
    add_eos: bool = False
    add_space_prefix: bool = True
    chat_template: str | None = attrs.field(default=None, repr=False)
    chat_templates: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    json: str | None = attrs.field(default=None, repr=False)
    merged: int = 0

    @property
    def strips_first_space(self) -> bool:
        """Whether the space that encoding puts before a text is left out of the decoded text."""
        return self.kind == "spm" and self.add_space_prefix

    def piece(self, number: int, skip_special: bool = True) -> bytes:
        """The bytes that one token stands for: part of a character, or several.

        Args:
            number: a token id; one beyond the vocabulary stands for nothing.
            skip_special: whether special tokens stand for nothing.

        Raises:
            UsageError: a negative id.
        """
        if number < 0:
            raise UsageError(f"token id {number}; ids are 0 to {len(self.tokens) - 1}")
        return _piece(self, number, skip_special) if number < len(self.tokens) else b""


def _piece(vocabulary: Vocabulary, number: int, skip_special: bool) -> bytes:
    """The bytes of a token of the vocabulary."""
    if skip_special and vocabulary.types[number] in (TokenType.CONTROL, TokenType.UNKNOWN):
        return b""
    return (_byte_level if vocabulary.kind == "bpe" else _sentencepiece)(vocabulary, number)


def _sentencepiece(vocabulary: Vocabulary, number: int) -> bytes:
    token = vocabulary.tokens[number]
    if vocabulary.types[number] == TokenType.BYTE and token in byte_tokens():
        return byte_tokens()[token]
    return _bytes(token.replace(SPACE, " "))


def _byte_level(vocabulary: Vocabulary, number: int) -> bytes:
    token, alphabet = vocabulary.tokens[number], byte_alphabet()
    if vocabulary.types[number] == TokenType.NORMAL and all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return _bytes(token)


def _bytes(token: str) -> bytes:
    """UTF-8; of a token whose bytes are no UTF-8 those of the file, which a reader keeps as surrogate escapes."""
    try:
        return token.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, which is no byte
        return token.encode("utf-8", "replace")


@cache
def byte_tokens() -> dict[str, bytes]:
    """SentencePiece's token for each byte."""
    return {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@cache
def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabulary: itself where it prints, else one from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + n): byte for n, byte in enumerate(others)}


__all__ = ["SPACE", "TokenType", "Vocabulary", "byte_alphabet", "byte_tokens"]
