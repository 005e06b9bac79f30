"""Tokenizers as data: the record, its readers and its writer."""

from __future__ import annotations

from edgekit.tokenizer._hf_directory import from_hf_directory as from_hf_directory
from edgekit.tokenizer._record import Tokenizer as Tokenizer
from edgekit.tokenizer._text import Detokenizer as Detokenizer
from edgekit.tokenizer._vocabulary import TokenType as TokenType

__all__ = ["Detokenizer", "TokenType", "Tokenizer", "from_hf_directory"]
