"""Token ids back to text: the bytes of the tokens one after the other, decoded as UTF-8.

The `tokenizers` library makes a whole run of byte tokens U+FFFD where one character in it is cut off, line ends
included; here only the cut-off character is lost, as in llama.cpp.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import cache

from edgekit.tokenizer.record import Tokenizer, TokenType
from edgekit.tokenizer.tokenizer_json import SPACE

#: Bytes of the longest character in UTF-8.
_LONGEST = 4


class Detokenizer:
    """The text of token ids that come one at a time; each takes the same work, however many came before.

    What `add` and `end` return, put together, is what `Tokenizer.decode` makes of all ids at once.

    Example:
        >>> text = tokenizer.detokenizer()  # doctest: +SKIP
        >>> "".join(map(text.add, ids)) + text.end()
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        """Begin after a prompt, whose own text is not given again."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = _tail(tokenizer, prompt)
        self._decoder.decode(tail)
        self._at_start = tokenizer.strips_first_space and not tail

    def add(self, number: int) -> str:
        """The characters that this token completes; bytes that can become none are U+FFFD."""
        return self._text(self._decoder.decode(self._tokenizer.piece(number)))

    def end(self) -> str:
        """U+FFFD where the last character is cut off."""
        return self._text(self._decoder.decode(b"", final=True))

    def _text(self, text: str) -> str:
        if not (text and self._at_start):
            return text
        self._at_start = False
        return text.removeprefix(" ")


def _tail(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    """The last bytes of ids, enough to hold every byte of a character that is not complete."""
    tail = b""
    for number in reversed(ids):
        tail = tokenizer.piece(number) + tail
        if len(tail) >= _LONGEST:
            break
    return tail


def piece(tokenizer: Tokenizer, number: int, skip_special: bool) -> bytes:
    """The bytes of a token of the vocabulary."""
    if skip_special and tokenizer.types[number] in (TokenType.CONTROL, TokenType.UNKNOWN):
        return b""
    return (_byte_level if tokenizer.kind == "bpe" else _sentencepiece)(tokenizer, number)


def _sentencepiece(tokenizer: Tokenizer, number: int) -> bytes:
    token = tokenizer.tokens[number]
    if tokenizer.types[number] == TokenType.BYTE and token in byte_tokens():
        return byte_tokens()[token]
    return _bytes(token.replace(SPACE, " "))


def _byte_level(tokenizer: Tokenizer, number: int) -> bytes:
    token, alphabet = tokenizer.tokens[number], byte_alphabet()
    if tokenizer.types[number] == TokenType.NORMAL and all(character in alphabet for character in token):
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
