"""Decoding: the concatenated bytes of the tokens, decoded as UTF-8.

If one character in a run of byte tokens is incomplete, the `tokenizers` library decodes the whole run to U+FFFD, line
ends included; here only the incomplete character becomes U+FFFD, as in llama.cpp.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from edgekit.tokenizer._vocabulary import Vocabulary

#: Bytes of the longest UTF-8 character.
_LONGEST = 4


class Detokenizer:
    """Decodes token ids one at a time, in constant time for each.

    The concatenated results of `add` and `end` equal `Tokenizer.decode` of all ids.

    Example:
        >>> text = tokenizer.detokenizer()  # doctest: +SKIP
        >>> "".join(map(text.add, ids)) + text.end()
    """

    def __init__(self, tokenizer: Vocabulary, prompt: Sequence[int] = ()) -> None:
        """Begin after a prompt, whose text is not returned."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = _tail(tokenizer, prompt)
        self._decoder.decode(tail)
        self._at_start = tokenizer.strips_first_space and not tail

    def add(self, number: int) -> str:
        """Return the characters that this token completes; invalid bytes are U+FFFD."""
        return self._text(self._decoder.decode(self._tokenizer.piece(number)))

    def end(self) -> str:
        """Return U+FFFD if the last character is incomplete, else an empty text."""
        return self._text(self._decoder.decode(b"", final=True))

    def _text(self, text: str) -> str:
        if not (text and self._at_start):
            return text
        self._at_start = False
        return text.removeprefix(" ")


def _tail(tokenizer: Vocabulary, ids: Sequence[int]) -> bytes:
    """Return the last bytes of ids, enough for every byte of an incomplete character."""
    tail = b""
    for number in reversed(ids):
        tail = tokenizer.piece(number) + tail
        if len(tail) >= _LONGEST:
            break
    return tail


__all__ = ["Detokenizer"]
