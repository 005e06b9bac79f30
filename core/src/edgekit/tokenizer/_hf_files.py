"""The files of a Hugging Face directory that describe its tokenizer, besides its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import read_bytes, read_object, shown, strict_json
from edgekit.tokenizer import _sentencepiece
from edgekit.tokenizer._added_tokens import ROLES, AddedToken, contradiction
from edgekit.tokenizer._sentencepiece import SentencePiece
from edgekit.tokenizer._vocabulary import TokenType

#: A tokenizer.json of 256,000 tokens has 34 MiB.
TOKENIZER_LIMIT = 256 << 20
#: The largest id: larger ones are refused.
LARGEST_ID = 1 << 22
#: Where transformers 5 keeps the templates besides the default one: a file a template.
TEMPLATES = "additional_chat_templates"
#: Templates that are read: a few names, not a directory of anything.
_MOST_TEMPLATES = 64


@attrs.frozen
class Files:
    """The files of a directory that are read whatever the tokenizer's kind."""

    directory: Path
    config: Mapping[str, Any]
    special: Mapping[str, Any]
    model_config: Mapping[str, Any]
    generation: Mapping[str, Any]

    @classmethod
    def of(cls, directory: Path) -> Files:
        """Read the files of a directory."""
        names = ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json")
        return cls(directory, *(read_object(directory, name, TOKENIZER_LIMIT) or {} for name in names))

    def tokenizer_json(self) -> tuple[str, dict[str, Any]] | None:
        """The text of tokenizer.json, and what it says."""
        content = read_bytes(self.directory, "tokenizer.json", TOKENIZER_LIMIT)
        if content is None:
            return None
        path = self.directory / "tokenizer.json"
        parsed = strict_json(content, path, "the file")
        if not (isinstance(parsed, dict) and isinstance(parsed.get("model"), dict)):
            raise InvalidFileError(f"{path}: describes no model; fetch it again")
        return content.decode("utf-8"), parsed

    def sentencepiece(self) -> SentencePiece | None:
        """The content of tokenizer.model, if it exists."""
        content = read_bytes(self.directory, "tokenizer.model", TOKENIZER_LIMIT)
        return None if content is None else _sentencepiece.parse(content, self.directory / "tokenizer.model")

    def named_tokens(self) -> list[AddedToken]:
        """The tokens that the files name, in the order in which transformers adds them.

        Raises:
            InvalidFileError: entries that are no tokens, or two that contradict each other.
        """
        declared = {token.id: token for token in self._added_tokens_json()}
        decoder = {token.id: token for token in self._decoder()}
        _refuse_contradictions(self.directory, declared.values(), decoder.values())
        counts = decoder if "added_tokens_decoder" in self.config else declared
        return [*(counts[number] for number in sorted(counts, key=lambda n: n or 0)), *self._roles()]

    def _decoder(self) -> Iterator[AddedToken]:
        path = self.directory / "tokenizer_config.json"
        decoder = self.config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise InvalidFileError(f"{path}: added_tokens_decoder is no object; fetch it again")
        for key, entry in decoder.items():
            number = checked_id(int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key, path)
            yield added_token(entry, number, path, "tokenizer_config.json's added_tokens_decoder")

    def _added_tokens_json(self) -> Iterator[AddedToken]:
        path = self.directory / "added_tokens.json"
        special = {token.content for token in self._roles()}
        for token, number in (read_object(self.directory, path.name, TOKENIZER_LIMIT) or {}).items():
            known = token in special
            yield AddedToken(token, checked_id(number, path), special=known, normalized=not known, source=path.name)

    def _roles(self) -> Iterator[AddedToken]:
        """The tokens that the files give a role."""
        others = [key for key in self.config if key.endswith("_token") and key not in ROLES]
        for role in (*ROLES, *others):
            token = AddedToken.of(self._entry(role), "tokenizer_config.json", special=True)
            if token is not None:
                yield attrs.evolve(token, role=True)
        for entry in self._extra():
            token = AddedToken.of(entry, "tokenizer_config.json", special=True)
            if token is not None:
                yield token

    def _entry(self, role: str) -> Any:
        """What says which token plays a role: special_tokens_map.json only counts without added_tokens_decoder."""
        sources = [self.config, self.special]
        if "added_tokens_decoder" not in self.config:
            sources.reverse()
        return next((source[role] for source in sources if source.get(role)), None)

    def _extra(self) -> list[Any]:
        found: list[Any] = []
        for source in (self.config,) if "added_tokens_decoder" in self.config else (self.config, self.special):
            for key in ("extra_special_tokens", "additional_special_tokens"):
                entries = source.get(key)
                found += entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else []
        return found

    def name(self, role: str) -> str | None:
        """The token that plays a role (``bos_token``)."""
        token = AddedToken.of(self._entry(role), "tokenizer_config.json")
        return None if token is None else token.content

    def special_ids(self, ids: Mapping[str, int], count: int, fallback: Mapping[str, int | None]) -> dict[str, Any]:
        """Ids of the special tokens: by name, else by number in config.json, else as the vocabulary has them."""
        found: dict[str, int | None] = {}
        for role in ("bos", "eos", "unk", "pad"):
            name = self.name(f"{role}_token")
            numbers = self._numbers(f"{role}_token_id", count)
            if name is not None and name in ids:
                found[role] = ids[name]
            elif f"{role}_token" not in self.config and numbers:
                found[role] = numbers[0]
            else:
                found[role] = fallback.get(role)
        return found

    def _numbers(self, key: str, count: int) -> list[int]:
        """Ids within the vocabulary that config.json gives for a key."""
        sections = (self.model_config, self.model_config.get("text_config"))
        return next((n for s in sections if isinstance(s, dict) and (n := _ids(s.get(key), count))), [])

    def ends(self, types: Sequence[TokenType], eos: int | None) -> tuple[int, ...]:
        """Every id but EOS that generation_config.json and config.json call an end of the text.

        Where generation_config.json has some, config.json's may be a library's default: a piece of text is none.
        """
        generation = _ids(self.generation.get("eos_token_id"), len(types))
        config = self._numbers("eos_token_id", len(types))
        if generation:
            config = [number for number in config if types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED)]
        return tuple(number for number in dict.fromkeys(generation + config) if number != eos)

    def flag(self, key: str, default: bool) -> bool:
        """A flag of tokenizer_config.json."""
        value = self.config.get(key)
        return value if isinstance(value, bool) else default

    def chat_templates(self) -> tuple[str | None, dict[str, str]]:
        """The default template (Jinja source), and the others by name, from the newest place that holds any.

        Raises:
            InvalidFileError: a template's file that is too large, no UTF-8, or a link that leads out of the directory.
        """
        found = self._template_files()
        for source in (self.config, read_object(self.directory, "chat_template.json", TOKENIZER_LIMIT) or {}):
            found = found or _named(source.get("chat_template"))
        return found.pop("default", None), found

    def _template_files(self) -> dict[str, str]:
        found: dict[str, str] = {}
        content = read_bytes(self.directory, "chat_template.jinja", TOKENIZER_LIMIT)
        if content is not None:
            found["default"] = _template(content, self.directory / "chat_template.jinja")
        for path in template_files(self.directory):
            content = read_bytes(path.parent, path.name, TOKENIZER_LIMIT)
            assert content is not None  # it was listed
            found[path.stem] = _template(content, path)
        return found


def _template(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path}: not UTF-8 at byte {error.start:,}; fetch it again") from error


def template_files(directory: Path) -> tuple[Path, ...]:
    """The files of the templates besides the default one.

    Raises:
        InvalidFileError: more than a model has, or a directory that is a link to somewhere else.
    """
    folder = directory / TEMPLATES
    found = sorted(folder.glob("*.jinja"))
    if len(found) > _MOST_TEMPLATES:
        raise InvalidFileError(f"{folder}: holds {len(found)} templates; a model has at most {_MOST_TEMPLATES}")
    if found and folder.is_symlink():
        raise InvalidFileError(f"{folder}: the link leads out of the directory; put the templates themselves here")
    return tuple(path for path in found if path.is_file())


def _named(template: Any) -> dict[str, str]:
    """Templates by name, from one source or ``[{"name": …, "template": …}]``."""
    if isinstance(template, str):
        return {"default": template}
    entries = template if isinstance(template, list) else ()
    pairs = ((e.get("name"), e.get("template")) for e in entries if isinstance(e, dict))
    return {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}


def _ids(value: Any, count: int) -> list[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and 0 <= n < count]


def checked_id(number: Any, path: Path) -> int:
    """A token id from a file.

    Raises:
        InvalidFileError: it is none.
    """
    if not (type(number) is int and 0 <= number <= LARGEST_ID):
        raise InvalidFileError(f"{path}: {shown(number)} is no token id; fetch it again")
    return number


def added_token(entry: Any, number: int, path: Path, source: str) -> AddedToken:
    """The added token of an object in a file.

    Raises:
        InvalidFileError: it has no content.
    """
    token = AddedToken.of(entry, source, number) if isinstance(entry, dict) else None
    if token is None:
        raise InvalidFileError(f"{path}: an added token without content; fetch it again")
    return token


def _refuse_contradictions(directory: Path, first: Any, second: Any) -> None:
    """Refuse one token with two ids, and one id with two tokens, in two files."""
    contents, ids = {token.content: token for token in first}, {token.id: token for token in first}
    for token in second:
        other = contents.get(token.content, token)
        if other.id != token.id:
            told = (f"token {shown(token.content)} is", other.id, other.source)
            raise contradiction(str(directory), told, (token.id, token.source))
        other = ids.get(token.id, token)
        if other.content != token.content:
            told = (f"id {token.id} is", shown(other.content), other.source)
            raise contradiction(str(directory), told, (shown(token.content), token.source))


__all__ = ["LARGEST_ID", "TEMPLATES", "TOKENIZER_LIMIT", "Files", "added_token", "checked_id", "template_files"]
