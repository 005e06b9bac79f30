"""Tokens that are added to a vocabulary by other files than the one that holds it, merged as transformers merges them.

    file                       names                                              counts
    tokenizer.json             added_tokens, with ids                             always
    tokenizer_config.json      added_tokens_decoder, with ids                     always
    added_tokens.json          tokens and ids                                     without added_tokens_decoder
    special_tokens_map.json    roles (eos_token), additional_special_tokens       without added_tokens_decoder
    tokenizer_config.json      roles, other ``*_token`` keys, extra_special_tokens  always

A token of the vocabulary keeps its id; a new one gets the next free id, in the order of the ids in the files, then in
the order of the roles. The flags (special, lstrip) of the last file apply.

Source: transformers 5.23, `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`; tokenizers 0.22,
`AddedVocabulary::add_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import shown

#: The roles of transformers, in its order.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@attrs.frozen
class AddedToken:
    """A token that is matched in the text before the text is split.

    Attributes:
        content: its text.
        id: as in the file; None if the file only names the token.
        special: whether it is a control token and not text.
        lstrip, rstrip: whether it includes the spaces before and after it.
        single_word: whether it only matches a whole word.
        normalized: whether it is matched in the normalized text.
        role: whether the file gives it a role of transformers, such as end of text or padding; it is special then.
        source: the file, and the key in it, for messages.
    """

    content: str
    id: int | None = None
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True
    role: bool = attrs.field(default=False, eq=False)
    source: str = attrs.field(default="", eq=False)

    @classmethod
    def of(cls, entry: Any, source: str, number: int | None = None, special: bool | None = None) -> AddedToken | None:
        """Return the token of an entry: a text, or an object with ``content``; None for anything else.

        Args:
            entry: from the file.
            source: see the class.
            number: its id.
            special: overrides the entry's flag.
        """
        content = entry.get("content") if isinstance(entry, Mapping) else entry
        if not isinstance(content, str) or not content:
            return None
        flags = {key: entry[key] is True for key in _FLAGS if key in entry} if isinstance(entry, Mapping) else {}
        if special is not None:
            flags["special"] = special
        flags.setdefault("normalized", not flags.get("special", False))
        return cls(content, number, source=source, **flags)

    def to_json(self) -> dict[str, Any]:
        """Return the entry for a tokenizer.json."""
        return {"id": self.id, "content": self.content, **{flag: getattr(self, flag) for flag in _FLAGS}}


def merge(
    vocabulary: Mapping[str, int],
    first: Iterable[AddedToken],
    named: Iterable[AddedToken],
    where: str,
    source: str = "tokenizer.json",
) -> dict[int, AddedToken]:
    """Return the added tokens of all files by id.

    Args:
        vocabulary: the model's tokens and ids.
        first: added tokens of the file that holds the vocabulary, each with its id.
        named: tokens of the other files: those with ids first, then the roles.
        where: the directory, for messages.
        source: the file that holds the vocabulary, for messages.

    Raises:
        InvalidFileError: two files give a token different ids, or an id different tokens; names both.
    """
    merged = {token.id: token for token in first if token.id is not None}
    declared: set[int] = set()
    ids = dict(vocabulary) | {token.content: number for number, token in merged.items()}
    owners = {number: content for content, number in ids.items()}
    for token in named:
        known = ids.get(token.content)
        if token.id is not None:
            _refuse_contradictions(token, known, owners.get(token.id), where, source)
        if known is None:
            known = max(len(vocabulary), 1 + max(merged, default=-1))
            ids[token.content], owners[known] = known, token.content
        if token.id is not None:
            declared.add(known)
        elif known in merged:  # only a role: the token's flags are kept
            token = attrs.evolve(merged[known], special=True) if token.role and known in declared else merged[known]
        merged[known] = attrs.evolve(token, id=known)
    return dict(sorted(merged.items()))


def _refuse_contradictions(token: AddedToken, known: int | None, owner: str | None, where: str, source: str) -> None:
    if known is not None and known != token.id:
        raise contradiction(where, (f"token {shown(token.content)} is", known, source), (token.id, token.source))
    if owner is not None and owner != token.content:
        raise contradiction(where, (f"id {token.id} is", shown(owner), source), (shown(token.content), token.source))


def contradiction(where: str, first: tuple[str, object, str], second: tuple[object, str]) -> InvalidFileError:
    """Return the error for two files that contradict each other."""
    what, one, source = first
    other, other_source = second
    return InvalidFileError(
        f"{where}: the files of its tokenizer contradict each other: {what} {one} in {source} and {other} in "
        f"{other_source}; take all of them from one place, or remove the one that is wrong"
    )


__all__ = ["ROLES", "AddedToken", "contradiction", "merge"]
