"""Tokenizers as data: the record, and what reads and writes it."""

from __future__ import annotations

from edgekit.tokenizer.hf_directory import from_hf_directory as from_hf_directory
from edgekit.tokenizer.record import Tokenizer as Tokenizer
from edgekit.tokenizer.text import Detokenizer as Detokenizer
from edgekit.tokenizer.vocabulary import TokenType as TokenType

__all__ = ["Detokenizer", "TokenType", "Tokenizer", "from_hf_directory"]
