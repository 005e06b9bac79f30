"""Tokenizers as data, the same for every file format; the `tokenizers` library cuts texts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import attrs

from edgekit.errors import EdgekitError, InvalidFileError, MissingPluginError, UsageError
from edgekit.files.foreign import native, utf8
from edgekit.files.memory import refuse_shortage
from edgekit.tokenizer import ends
from edgekit.tokenizer._bounds import least_of_beginning, lost_bytes, most_bytes
from edgekit.tokenizer._text import Detokenizer
from edgekit.tokenizer._tokenizer_json import build
from edgekit.tokenizer._vocabulary import Vocabulary

#: Characters from which on a text is cut without the interpreter's lock: it takes more than some milliseconds.
_LONG = 16_384


@attrs.frozen(eq=False)
class Tokenizer(Vocabulary):
    """A vocabulary that cuts texts and decodes ids; the fields are `Vocabulary`'s."""

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Cut a text into token ids; special tokens in the text (``</s>``) are recognised.

        Args:
            text: any Unicode text.
            add_special: whether to put BOS before and EOS after it, where `add_bos` and `add_eos` say so.

        Raises:
            MissingPluginError: the `tokenizers` library is not installed.
            UnsupportedModelError: a pre-tokenizer of unknown name.
            UsageError: half of a surrogate pair in the text.
            InvalidFileError: a tokenizer that the library cannot cut the text with.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"the text is no Unicode text: {error.reason} at character {error.start}"
            raise UsageError(message, public=message) from error
        ids = self._cut(text)
        before = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        after = [self.eos] if add_special and self.add_eos and self.eos is not None else []
        return [*before, *ids, *after]

    def _cut(self, text: str) -> list[int]:
        library = self._library
        try:
            with native("the tokenizer"):  # a pattern may give up on a text, and that is a panic
                if len(text) < _LONG:
                    found = library.encode(text, add_special_tokens=False)
                else:  # Of the library's functions only those for batches let other threads run meanwhile.
                    (found,) = library.encode_batch_fast([text], add_special_tokens=False)
        except EdgekitError:
            raise
        except Exception as error:  # it has no classes of its own
            refuse_shortage(error, f"cutting a text of {len(text):,} characters into tokens")
            raise InvalidFileError(
                f"the tokenizers library cannot cut a text with the tokenizer: {error!s:.300}; fetch it again"
            ) from error
        ids: list[int] = found.ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids; those beyond the vocabulary (a matrix may have spare rows) stand for nothing.
            skip_special: whether to leave out special tokens.

        Raises:
            UsageError: a negative id.
        """
        known = [int(number) for number in ids if int(number) < len(self.tokens)]
        if known and min(known) < 0:
            raise UsageError(f"token id {min(known)}; ids are 0 to {len(self.tokens) - 1}")
        text = b"".join(self.piece(number, skip_special) for number in known).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """Decodes ids one at a time; see `edgekit.tokenizer._text.Detokenizer`.

        Args:
            prompt: ids before them, whose text is not given.
        """
        return Detokenizer(self, prompt)

    def least_tokens(self, text: str, enough: int | None = None) -> int:
        """A number of tokens that `encode` cannot stay below: for refusing what is too long by far.

        It comes from the text's bytes and the longest token, in milliseconds where cutting the text takes seconds; 0
        where the tokenizer may leave out parts of a text, so that its length says nothing.

        Args:
            text: any text.
            enough: where the bytes do not say that there are more tokens than this, because one long token is in the
                vocabulary, a beginning of the text is cut, long enough to have so many.
        """
        least = self._least_by_bytes(text)
        if enough is None or not 0 < least <= enough or self.kind == "spm":
            return least
        return max(least, least_of_beginning(text, enough, self._library))

    def _least_by_bytes(self, text: str) -> int:
        written = text.replace("▁", " ") if self.kind == "spm" else text  # one piece, whichever is in the text
        most, lost = self._most_bytes
        return math.ceil(len(written.encode("utf-8", "replace").translate(None, lost)) / most)

    @functools.cached_property
    def _most_bytes(self) -> tuple[float, bytes]:
        """Bytes that a token stands for at most, and those that the vocabulary does not have."""
        return most_bytes(self, self._library), lost_bytes(self)

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids at which a text ends, in every runtime: `eos`, `ends`, and what llama.cpp knows by its text."""
        return ends.end_ids(self.tokens, [*self.ends, *([] if self.eos is None else [self.eos])])

    def to_json(self) -> str:
        """The text of a ``tokenizer.json``: the given one, or one made from the record.

        Raises:
            UnsupportedModelError: a pre-tokenizer of unknown name.
        """
        return self.json if self.json is not None else build(self)

    @functools.cached_property
    def _library(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            refuse_shortage(error, "importing the tokenizers library")
            raise MissingPluginError(
                "cutting text into tokens needs the tokenizers library; pip install 'edgekit-core[text]'"
            ) from error
        text = self.to_json()
        utf8(text, "the tokenizer")
        try:
            with native("the tokenizer"):
                return tokenizers.Tokenizer.from_str(text)
        except EdgekitError:
            raise
        except Exception as error:
            refuse_shortage(error, "loading the tokenizer", len(text))
            raise InvalidFileError(
                f"the tokenizers library refuses the tokenizer: {error!s:.300}; fetch it again"
            ) from error


__all__ = ["Tokenizer"]
