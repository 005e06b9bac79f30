"""The largest number of bytes of a text that one token covers, from which follows the smallest number of tokens.

The longest token is not enough: a normalizer may shorten a text, some added tokens include the spaces beside them,
bytes that a vocabulary lacks are left out (SmolLM2's has no U+0004), and SentencePiece without all bytes makes one
unknown token of unknown text of any length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.tokenizer._vocabulary import TokenType, Vocabulary, byte_alphabet, byte_tokens

#: The largest factor by which a normalizer shortens UTF-8. NFC: three Hangul letters of three bytes each become one of
#: three bytes, and the Kelvin sign of three bytes a K. The others never shorten it.
_SHORTENS = {"NFC": 3.0, "NFD": 3.0, "Prepend": 1.0, "Replace": 1.0, "Sequence": 1.0}
#: Pre-tokenizers that split a text into words and keep all of it.
_CUTS = ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "Sequence")


def most_bytes(tokenizer: Vocabulary, library: Any) -> float:
    """Return the largest number of bytes that one token covers; infinity if the tokenizer may drop any number.

    Args:
        tokenizer: with the vocabulary.
        library: the same tokenizer of the `tokenizers` library.
    """
    if tokenizer.kind == "spm" and lost_bytes(tokenizer):
        return math.inf
    if any(token.lstrip or token.rstrip for token in library.get_added_tokens_decoder().values()):
        return math.inf
    if not all(map(_keeps, _steps(library.pre_tokenizer))):
        return math.inf
    shortens = math.prod(map(_shortens, _steps(library.normalizer)))
    return shortens * max(len(_written(tokenizer, number)) for number in range(len(tokenizer.tokens)))


#: Characters of a prefix for each token: texts have 3 to 5, runs of spaces more.
_BEGINNING = 12
#: Tokens before the last word that the end of a prefix may change: some expressions group digits from the right.
_UNSURE = 8


def least_of_beginning(text: str, enough: int, library: Any) -> int:
    """Return how many tokens of a text's prefix are tokens of the whole text; 0 if the text is hardly longer.

    A pre-tokenizer splits from left to right, so all words of a prefix but the last are words of the whole text.

    Args:
        text: the whole text.
        enough: number of tokens at which counting may stop.
        library: the tokenizer, whose pre-tokenizer makes words.
    """
    length = _BEGINNING * (enough + _UNSURE)
    if len(text) <= 2 * length:
        return 0
    (encoding,) = library.encode_batch([text[:length]], add_special_tokens=False)
    words: list[int | None] = encoding.word_ids
    return max(0, sum(word != words[-1] for word in words) - _UNSURE)


def lost_bytes(tokenizer: Vocabulary) -> bytes:
    """Return the bytes for which a vocabulary has no token; byte-level BPE drops them from a text."""
    tokens = set(tokenizer.tokens)
    if tokenizer.kind == "bpe":
        return bytes(byte for token, byte in byte_alphabet().items() if token not in tokens)
    return b"".join(byte for token, byte in byte_tokens().items() if token not in tokens)


def _written(tokenizer: Vocabulary, number: int) -> bytes:
    """Return the text that a token covers."""
    added = tokenizer.types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    return tokenizer.tokens[number].encode("utf-8", "replace") if added else tokenizer.piece(number) or b"?"


def _steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a component of the library and its steps, each as in a tokenizer.json."""
    if component is None:
        return
    left = [json.loads(component.__getstate__())]
    while left:
        step = left.pop()
        left += step.get("normalizers", []) + step.get("pretokenizers", [])
        yield step


def _keeps(step: Mapping[str, Any]) -> bool:
    return step.get("type") in _CUTS and step.get("behavior") != "Removed"


def _shortens(step: Mapping[str, Any]) -> float:
    if step.get("type") == "Replace":
        pattern, content = step.get("pattern", {}).get("String"), step.get("content", "")
        # An expression may match any number of characters.
        return math.inf if not pattern or not content else max(1.0, len(pattern.encode()) / len(content.encode()))
    return _SHORTENS.get(str(step.get("type")), math.inf)


__all__ = ["least_of_beginning", "lost_bytes", "most_bytes"]
