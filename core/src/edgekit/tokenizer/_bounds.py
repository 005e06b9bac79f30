"""How many bytes of a text one token can stand for at most, so that a text's length says how many it has at least.

The longest token is not all: a normalizer may shorten a text, some added tokens take the blanks beside them, bytes that
a vocabulary does not have are left out (SmolLM2's has no U+0004), and SentencePiece without all bytes makes one unknown
token of what it does not know, however long it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.tokenizer._vocabulary import TokenType, Vocabulary, byte_alphabet, byte_tokens

#: By how much a normalizer shortens UTF-8 at most. NFC: three Hangul letters of three bytes each become one of three
#: bytes, and the Kelvin sign of three bytes a K. The others write more bytes, or as many.
_SHORTENS = {"NFC": 3.0, "NFD": 3.0, "Prepend": 1.0, "Replace": 1.0, "Sequence": 1.0}
#: What cuts a text in words and keeps all of it.
_CUTS = ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "Sequence")


def most_bytes(tokenizer: Vocabulary, library: Any) -> float:
    """Bytes of a text that one token stands for at most; infinity where the tokenizer may leave out any number.

    Args:
        tokenizer: whose vocabulary counts.
        library: the same tokenizer as the `tokenizers` library has it.
    """
    if tokenizer.kind == "spm" and lost_bytes(tokenizer):
        return math.inf
    if any(token.lstrip or token.rstrip for token in library.get_added_tokens_decoder().values()):
        return math.inf
    if not all(map(_keeps, _steps(library.pre_tokenizer))):
        return math.inf
    shortens = math.prod(map(_shortens, _steps(library.normalizer)))
    return shortens * max(len(_written(tokenizer, number)) for number in range(len(tokenizer.tokens)))


#: Characters of a beginning for each token that there may be: texts have 3 to 5, runs of blanks more.
_BEGINNING = 12
#: Tokens that an end may change in front of the last word: digits are grouped from the right by some expressions.
_UNSURE = 8


def least_of_beginning(text: str, enough: int, library: Any) -> int:
    """Tokens of a text's beginning that are also the whole text's; 0 where the text is not much longer than that.

    A pre-tokenizer cuts from left to right, so that all words but the last are words of the whole text as well.

    Args:
        text: whose words count.
        enough: as many are of interest.
        library: the tokenizer, whose pre-tokenizer makes words.
    """
    length = _BEGINNING * (enough + _UNSURE)
    if len(text) <= 2 * length:
        return 0
    (found,) = library.encode_batch([text[:length]], add_special_tokens=False)
    words: list[int | None] = found.word_ids
    return max(0, sum(word != words[-1] for word in words) - _UNSURE)


def lost_bytes(tokenizer: Vocabulary) -> bytes:
    """The bytes that a vocabulary has no token for; byte-level BPE leaves them out of a text, one by one."""
    own = set(tokenizer.tokens)
    if tokenizer.kind == "bpe":
        return bytes(byte for token, byte in byte_alphabet().items() if token not in own)
    return b"".join(byte for token, byte in byte_tokens().items() if token not in own)


def _written(tokenizer: Vocabulary, number: int) -> bytes:
    """What stands in a text for a token."""
    added = tokenizer.types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    return tokenizer.tokens[number].encode("utf-8", "replace") if added else tokenizer.piece(number) or b"?"


def _steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """A component of the library and the steps of which it is made, each as in a tokenizer.json."""
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
