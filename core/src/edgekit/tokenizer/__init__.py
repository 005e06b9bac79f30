"""Tokenizers as data: the record, its readers and its writer."""

from __future__ import annotations

from pathlib import Path

from edgekit.tokenizer._record import Tokenizer as Tokenizer
from edgekit.tokenizer._text import Detokenizer as Detokenizer
from edgekit.tokenizer._vocabulary import TokenType as TokenType


def from_hf_directory(directory: Path) -> Tokenizer | None:
    """Return the tokenizer of a Hugging Face directory: SentencePiece, byte-level BPE or WordPiece; None without one.

    Raises:
        UnsupportedModelError: another kind of tokenizer (Unigram), or a file that is not supported.
        InvalidFileError: a file is malformed, too large, or a link to a place outside the directory.
    """
    from edgekit.tokenizer import _hf_directory  # the readers of five kinds of files, which GGUF needs none of

    return _hf_directory.from_hf_directory(directory)


__all__ = ["Detokenizer", "TokenType", "Tokenizer", "from_hf_directory"]
