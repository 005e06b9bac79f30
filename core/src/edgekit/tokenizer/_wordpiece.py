"""WordPiece, as BERT has it: from a tokenizer.json, or from vocab.txt, which has a token a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import read_bytes
from edgekit.tokenizer._hf_files import TOKENIZER_LIMIT, Files
from edgekit.tokenizer._record import Tokenizer
from edgekit.tokenizer._tokenizer_json import LONGEST_WORD
from edgekit.tokenizer._vocabulary import INSIDE, TokenType

VOCABULARY = "vocab.txt"
#: BERT's names of special tokens, by the key of tokenizer_config.json that may say another.
_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def from_vocabulary(files: Files) -> Tokenizer:
    """Return the tokenizer of a directory with vocab.txt and no tokenizer.json.

    Raises:
        InvalidFileError: not UTF-8, a token twice, or no ``[CLS]``, ``[SEP]`` or ``[UNK]``.
    """
    path = files.directory / VOCABULARY
    content = read_bytes(files.directory, VOCABULARY, TOKENIZER_LIMIT) or b""
    try:
        tokens = tuple(line.rstrip("\r") for line in content.decode("utf-8").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path}: not UTF-8 at byte {error.start:,}; fetch it again") from error
    ids = {token: number for number, token in enumerate(tokens)}
    names = {key: files.name(key) or default for key, default in _SPECIAL.items()}
    missing = [names[key] for key in ("cls_token", "sep_token", "unk_token") if names[key] not in ids]
    if missing or len(ids) < len(tokens):
        what = f"it has no token {missing[0]}" if missing else "it has a token twice"
        raise InvalidFileError(f"{path}: {what}; fetch it again")
    special = dict.fromkeys(names.values(), TokenType.CONTROL) | {names["unk_token"]: TokenType.UNKNOWN}
    lowercase = files.flag("do_lower_case", True)
    return Tokenizer(
        "wordpiece",
        tokens,
        tuple(special.get(token, TokenType.NORMAL) for token in tokens),
        bos=ids[names["cls_token"]],
        eos=ids[names["sep_token"]],
        unk=ids[names["unk_token"]],
        pad=ids.get(names["pad_token"]),
        add_eos=True,
        lowercase=lowercase,
        strip_accents=files.flag("strip_accents", lowercase),
    )


def ends_of(processor: Any) -> tuple[str | None, str | None]:
    """Return the tokens before and after a text that the post-processor of a tokenizer.json adds, if it is BERT's own.

    Of other kinds than ``TemplateProcessing``, which all tokenizers may have.
    """
    if not isinstance(processor, dict):
        return None, None
    pairs = (processor.get(key) for key in ("cls", "sep"))
    first, last = (pair[0] if isinstance(pair, list) and pair and isinstance(pair[0], str) else None for pair in pairs)
    return first, last


def habits(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what happens to a text before it is cut: fields of the record."""
    normalizer = parsed.get("normalizer")
    given = normalizer if isinstance(normalizer, dict) else {}
    lowercase = given.get("lowercase") is True
    accents = given.get("strip_accents")
    return {"lowercase": lowercase, "strip_accents": accents if isinstance(accents, bool) else lowercase}


def pre(parsed: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return ``default`` for the pre-tokenizer and the settings that llama.cpp imitates; empty for others."""
    steps = [parsed.get(key) for key in ("normalizer", "pre_tokenizer")]
    normalizer, cuts = (step if isinstance(step, dict) else {} for step in steps)
    same = (
        normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text", True) is True
        and normalizer.get("handle_chinese_chars", True) is True
        and cuts.get("type") == "BertPreTokenizer"
        and model.get("continuing_subword_prefix", INSIDE) == INSIDE
        and model.get("max_input_chars_per_word", LONGEST_WORD) == LONGEST_WORD
    )
    return "default" if same else ""


__all__ = ["VOCABULARY", "ends_of", "from_vocabulary", "habits", "pre"]
