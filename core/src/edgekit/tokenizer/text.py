"""Token ids back to text: the bytes of the tokens one after the other, decoded at once.

The `tokenizers` library makes a whole run of byte tokens U+FFFD where one character in it is cut off, line ends
included; here only the cut-off character is lost, as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from edgekit.tokenizer.record import Tokenizer, TokenType
from edgekit.tokenizer.tokenizer_json import SPACE


def decode(tokenizer: Tokenizer, ids: Iterable[int], skip_special: bool) -> str:
    """The text of ids within the vocabulary."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN) if skip_special else ()
    kept = [number for number in ids if tokenizer.types[number] not in special]
    if tokenizer.kind == "bpe":
        return b"".join(_byte_level(tokenizer, number) for number in kept).decode("utf-8", "replace")
    text = b"".join(_sentencepiece(tokenizer, number) for number in kept).decode("utf-8", "replace")
    return text.removeprefix(" ") if tokenizer.add_space_prefix else text


def _sentencepiece(tokenizer: Tokenizer, number: int) -> bytes:
    token = tokenizer.tokens[number]
    if tokenizer.types[number] == TokenType.BYTE and token in byte_tokens():
        return byte_tokens()[token]
    return token.replace(SPACE, " ").encode("utf-8", "replace")


def _byte_level(tokenizer: Tokenizer, number: int) -> bytes:
    token, alphabet = tokenizer.tokens[number], byte_alphabet()
    if tokenizer.types[number] == TokenType.NORMAL and all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
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
