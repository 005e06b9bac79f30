"""Mistral's tekken.json: byte-level BPE whose tokens have ranks instead of merges, as in tiktoken.

    config           pattern (of the pre-tokenizer), default_vocab_size, default_num_special_tokens
    vocab            rank, token_bytes (base64) of each token; the ranks count from 0
    special_tokens   rank, token_str, is_control; the ids from 0 on, missing ones are unused
    id               of a special token its rank, of another its rank plus the number of special tokens

A token of several bytes has one merge: of the two parts that merging by the lowest rank leaves of it before the last
step.

Source: mistral-common 1.8, ``tokens/tokenizers/tekken.py`` (`Tekkenizer`); tiktoken 0.9, ``src/lib.rs``
(`byte_pair_merge`).
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from typing import Any, NoReturn

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import read_object, shown
from edgekit.tokenizer import pretokenizers
from edgekit.tokenizer._hf_files import TOKENIZER_LIMIT, Files
from edgekit.tokenizer._record import Tokenizer
from edgekit.tokenizer._vocabulary import TokenType, byte_alphabet

NAME = "tekken.json"
#: Largest number of tokens, and of bytes of one.
_MOST, _LONGEST = 1 << 20, 1 << 10
_PRE = "tekken"
_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def from_tekken(files: Files) -> Tokenizer:
    """Return the tokenizer of a directory with a tekken.json.

    Raises:
        UnsupportedModelError: another pre-tokenizer, or special tokens that the file does not name.
        InvalidFileError: the file is malformed or too large.
    """
    where = str(files.directory / NAME)
    parsed = read_object(files.directory, NAME, TOKENIZER_LIMIT) or {}
    config = parsed.get("config")
    if not isinstance(config, dict):
        _damaged(where, "config is no object")
    expressions = "|".join(pretokenizers.EXPRESSIONS[_PRE])
    if config.get("pattern") != expressions:
        raise UnsupportedModelError(
            f"{where}: its pattern is {shown(config.get('pattern'))}; edgekit knows {expressions}; save the tokenizer "
            "with transformers' AutoTokenizer as a tokenizer.json"
        )
    special = _special(parsed, _count(config, "default_num_special_tokens", where), where)
    ranks = _ranks(parsed, _count(config, "default_vocab_size", where) - len(special), where)
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    names = [name for name, _ in special]
    template, templates = files.chat_templates()
    ids = {role: names.index(name) for role, name in _ROLES.items() if name in names}
    merges = (_merge(token, ranks) for token in ranks if len(token) > 1)
    types = [kind for _, kind in special] + [TokenType.NORMAL] * len(ranks)
    return Tokenizer(
        "bpe",
        (*names, *spelled.values()),
        tuple(types),
        merges=tuple(f"{spelled[pair[0]]} {spelled[pair[1]]}" for pair in merges if pair),
        pre=_PRE,
        bos=ids.get("bos"),
        eos=ids.get("eos"),
        unk=ids.get("unk"),
        pad=ids.get("pad"),
        ends=files.ends(types, ids.get("eos")),
        add_bos="bos" in ids,
        add_eos=False,
        add_space_prefix=False,
        chat_template=template,
        chat_templates=templates,
        remarks=tuple(files.invalid_ends(len(types))),
    )


def _special(parsed: Mapping[str, Any], count: int, where: str) -> list[tuple[str, TokenType]]:
    entries = parsed.get("special_tokens")
    if not isinstance(entries, list) or not entries:
        raise UnsupportedModelError(
            f"{where}: it has no special_tokens (version v3 has none); save the tokenizer with transformers' "
            "AutoTokenizer as a tokenizer.json"
        )
    found = [(f"<SPECIAL_{number}>", TokenType.UNUSED) for number in range(count)]
    for entry in entries:
        rank, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("rank", "token_str"))
        if type(rank) is not int or not 0 <= rank < count or not isinstance(text, str) or not text:
            _damaged(where, f"{shown(entry)} is no special token of {count}")
        found[rank] = text, TokenType.UNKNOWN if text == _ROLES["unk"] else TokenType.CONTROL
    if len({text for text, _ in found}) < count:
        _damaged(where, "two special tokens have one text")
    return found


def _ranks(parsed: Mapping[str, Any], count: int, where: str) -> dict[bytes, int]:
    """Return the rank of each token, in their order; those beyond the vocabulary's size are not used."""
    entries = parsed.get("vocab")
    if not isinstance(entries, list) or not 256 <= count <= len(entries):
        _damaged(where, f"{len(entries) if isinstance(entries, list) else 'no'} tokens are there for {count}")
    ranks: dict[bytes, int] = {}
    for number, entry in enumerate(entries[:count]):
        rank, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("rank", "token_bytes"))
        token = _decoded(text)
        if rank != number or not token or len(token) > _LONGEST or token in ranks:
            _damaged(where, f"{shown(entry)} is no token of rank {number}")
        ranks[token] = number
    if any(bytes([byte]) not in ranks for byte in range(256)):
        _damaged(where, "a byte has no token")
    return ranks


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        return b""


def _merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two parts that become the token last; None if merging does not reach it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    limit = ranks[token]
    while len(parts) > 2:
        pairs = ((ranks.get(a + b, limit), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        rank, place = min(pairs)
        if rank >= limit:
            return None
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _count(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= _MOST:
        _damaged(where, f"{key} is {shown(value)}")
    return value


def _damaged(where: str, problem: str) -> NoReturn:
    raise InvalidFileError(f"{where}: {problem}; fetch the file again")


__all__ = ["NAME", "from_tekken"]
