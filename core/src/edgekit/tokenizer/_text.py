"""Token ids back to text: the bytes of the tokens one after the other, decoded as UTF-8.

The `tokenizers` library makes a whole run of byte tokens U+FFFD where one character in it is cut off, line ends
included; here only the cut-off character is lost, as in llama.cpp.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from edgekit.tokenizer._vocabulary import Vocabulary

#: Bytes of the longest character in UTF-8.
_LONGEST = 4


class Detokenizer:
    """The text of token ids that come one at a time; each takes the same work, however many came before.

    What `add` and `end` return, put together, is what `Tokenizer.decode` makes of all ids at once.

    Example:
        >>> text = tokenizer.detokenizer()  # doctest: +SKIP
        >>> "".join(map(text.add, ids)) + text.end()
    """

    def __init__(self, tokenizer: Vocabulary, prompt: Sequence[int] = ()) -> None:
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


def _tail(tokenizer: Vocabulary, ids: Sequence[int]) -> bytes:
    """The last bytes of ids, enough to hold every byte of a character that is not complete."""
    tail = b""
    for number in reversed(ids):
        tail = tokenizer.piece(number) + tail
        if len(tail) >= _LONGEST:
            break
    return tail


__all__ = ["Detokenizer"]
