"""A tokenizer's vocabulary as data, and the bytes of each token."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cache
from typing import Literal

import attrs

from edgekit.errors import UsageError

#: SentencePiece's character for a space.
SPACE = "▁"
#: WordPiece's mark of a piece that begins inside a word.
INSIDE = "##"


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
    """A vocabulary and the rules by which text is split into its tokens.

    Attributes:
        kind: ``spm`` (SentencePiece: pieces with scores, bytes as fallback), ``bpe`` (byte-level, ranked merges) or
            ``wordpiece`` (BERT's: the longest pieces of a word, those inside it with ``##``).
        tokens: the token of each id, in the vocabulary's own alphabet (``▁the``, ``Ġthe``).
        types: the type of each token.
        scores: of each token (``spm``); empty for ``bpe``.
        merges: ``"left right"``, highest priority first (``bpe``); empty for ``spm``, which has scores instead.
        pre: llama.cpp's name of the pre-tokenizer (``gpt-2``, ``llama-bpe``, ``qwen2`` …); ``default`` for the others;
            empty if llama.cpp has no name for the pre-tokenizer of `json`.
        bos, eos, unk, pad: special ids, or None; of ``wordpiece`` the first two are ``[CLS]`` and ``[SEP]``.
        ends: further ids that the model's files list as an end of text; `end_ids` has all of them.
        add_bos, add_eos: whether encoding adds them.
        add_space_prefix: whether a leading space is added to a text (``spm``).
        lowercase, strip_accents: what happens to a text first (``wordpiece``).
        chat_template: Jinja source, or None; `edgekit.runtime.chat` renders it in a restricted process.
        chat_templates: the model's other templates by name (``tool_use``, ``rag``).
        json: the text of an equivalent ``tokenizer.json`` of the `tokenizers` library, or None.
        merged: number of tokens that only other files than the vocabulary name (``tokenizer_config.json``,
            ``added_tokens.json``).
        remarks: what the user should know about how its files were read, a sentence each.
    """

    kind: Literal["spm", "bpe", "wordpiece"]
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
    lowercase: bool = True
    strip_accents: bool = True
    chat_template: str | None = attrs.field(default=None, repr=False)
    chat_templates: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    json: str | None = attrs.field(default=None, repr=False)
    merged: int = 0
    remarks: tuple[str, ...] = attrs.field(default=(), repr=False, eq=False)

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding removes the leading space that encoding, or the first word's bytes, add."""
        return (self.kind == "spm" and self.add_space_prefix) or self.kind == "wordpiece"

    def piece(self, number: int, skip_special: bool = True) -> bytes:
        """Return the bytes of a token: part of a character, or several.

        Args:
            number: a token id; one beyond the vocabulary has no bytes.
            skip_special: whether special tokens have no bytes.

        Raises:
            UsageError: a negative id.
        """
        if number < 0:
            raise UsageError(f"token id {number}; ids are 0 to {len(self.tokens) - 1}")
        return _piece(self, number, skip_special) if number < len(self.tokens) else b""


def _piece(vocabulary: Vocabulary, number: int, skip_special: bool) -> bytes:
    """Return the bytes of a token of the vocabulary."""
    if skip_special and vocabulary.types[number] in (TokenType.CONTROL, TokenType.UNKNOWN):
        return b""
    return _PIECES[vocabulary.kind](vocabulary, number)


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


def _wordpiece(vocabulary: Vocabulary, number: int) -> bytes:
    token = vocabulary.tokens[number]
    return _bytes(token.removeprefix(INSIDE) if token.startswith(INSIDE) else f" {token}")


_PIECES = {"spm": _sentencepiece, "bpe": _byte_level, "wordpiece": _wordpiece}


def _bytes(token: str) -> bytes:
    """Encode as UTF-8; surrogate escapes, which readers use for bytes that are not UTF-8, become those bytes."""
    try:
        return token.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which is not an escape
        return token.encode("utf-8", "replace")


@cache
def byte_tokens() -> dict[str, bytes]:
    """Return SentencePiece's token for each byte."""
    return {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the character of each byte in GPT-2's vocabulary: itself if it is printable, else one from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + n): byte for n, byte in enumerate(others)}


__all__ = ["INSIDE", "SPACE", "TokenType", "Vocabulary", "byte_alphabet", "byte_tokens"]
