"""The tokenizer record, the same for every file format; the `tokenizers` library encodes texts."""

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

#: Characters from which a text is encoded without the interpreter's lock, since that takes several milliseconds.
_LONG = 16_384


@attrs.frozen(eq=False)
class Tokenizer(Vocabulary):
    """A vocabulary that encodes texts and decodes ids; the fields are those of `Vocabulary`."""

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Encode a text to token ids; special tokens in the text (``</s>``) are recognised.

        Args:
            text: any Unicode text.
            add_special: whether to add BOS and EOS if `add_bos` and `add_eos` are set.

        Raises:
            MissingPluginError: the `tokenizers` library is not installed.
            UnsupportedModelError: a pre-tokenizer of unknown name.
            UsageError: the text has half of a surrogate pair.
            InvalidFileError: the library cannot encode the text with this tokenizer.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"the text is not Unicode text: {error.reason} at character {error.start}"
            raise UsageError(message, public=message) from error
        ids = self._cut(text)
        before = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        after = [self.eos] if add_special and self.add_eos and self.eos is not None else []
        return [*before, *ids, *after]

    def _cut(self, text: str) -> list[int]:
        library = self._library
        try:
            with native("the tokenizer"):  # a pattern may fail on a text, which is a panic
                if len(text) < _LONG:
                    encoding = library.encode(text, add_special_tokens=False)
                else:  # Of the library's functions only those for batches let other threads run meanwhile.
                    (encoding,) = library.encode_batch_fast([text], add_special_tokens=False)
        except EdgekitError:
            raise
        except Exception as error:  # the library has no exception classes
            refuse_shortage(error, f"cutting a text of {len(text):,} characters into tokens")
            raise InvalidFileError(
                f"the tokenizers library cannot cut a text with the tokenizer: {error!s:.300}; fetch it again"
            ) from error
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Decode token ids to text; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: token ids; those beyond the vocabulary (a matrix may have spare rows) are ignored.
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
        """Return a decoder of ids one at a time; see `edgekit.tokenizer._text.Detokenizer`.

        Args:
            prompt: ids before them, whose text is not returned.
        """
        return Detokenizer(self, prompt)

    def least_tokens(self, text: str, enough: int | None = None) -> int:
        """Return a lower bound of the number of tokens, to refuse texts that are much too long.

        It is computed from the text's bytes and the longest token, in milliseconds where encoding takes seconds; 0 if
        the tokenizer may drop parts of a text.

        Args:
            text: any text.
            enough: if the bytes do not show that there are more tokens than this, because the vocabulary has one long
                token, a prefix that is long enough for so many tokens is encoded.
        """
        least = self._least_by_bytes(text)
        if enough is None or not 0 < least <= enough or self.kind == "spm":
            return least
        return max(least, least_of_beginning(text, enough, self._library))

    def _least_by_bytes(self, text: str) -> int:
        written = text.replace("▁", " ") if self.kind == "spm" else text  # one piece, for any text
        most, lost = self._most_bytes
        return math.ceil(len(written.encode("utf-8", "replace").translate(None, lost)) / most)

    @functools.cached_property
    def _most_bytes(self) -> tuple[float, bytes]:
        """Return the largest number of bytes of a token, and the bytes that the vocabulary lacks."""
        return most_bytes(self, self._library), lost_bytes(self)

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids at which a text ends, in every runtime: `eos`, `ends`, and those that llama.cpp recognises."""
        return ends.end_ids(self.tokens, [*self.ends, *([] if self.eos is None else [self.eos])])

    def to_json(self) -> str:
        """Return the text of a ``tokenizer.json``: the given one, or one made from the record.

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
                library = tokenizers.Tokenizer.from_str(text)
        except EdgekitError:
            raise
        except Exception as error:
            refuse_shortage(error, "loading the tokenizer", len(text))
            raise InvalidFileError(
                f"the tokenizers library refuses the tokenizer: {error!s:.300}; fetch it again"
            ) from error
        library.no_truncation()  # the files of embedding models cut and fill up every text
        library.no_padding()
        return library


__all__ = ["Tokenizer"]
