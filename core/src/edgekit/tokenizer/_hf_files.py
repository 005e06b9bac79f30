"""The files of a Hugging Face directory that describe its tokenizer, besides its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import members, read_bytes, read_object, shown, strict_json
from edgekit.tokenizer import _sentencepiece
from edgekit.tokenizer._added_tokens import ROLES, AddedToken, contradiction
from edgekit.tokenizer._sentencepiece import SentencePiece
from edgekit.tokenizer._vocabulary import TokenType

#: Largest size in bytes; a tokenizer.json of 256,000 tokens has 34 MiB.
TOKENIZER_LIMIT = 256 << 20
#: Largest id that is accepted.
LARGEST_ID = 1 << 22
#: Directory of the templates besides the default one in transformers 5, one file each.
TEMPLATES = "additional_chat_templates"
#: Largest number of templates.
_MOST_TEMPLATES = 64


@attrs.frozen
class Files:
    """The files of a directory that all kinds of tokenizers have in common."""

    directory: Path
    config: Mapping[str, Any]
    special: Mapping[str, Any]
    model_config: Mapping[str, Any]
    generation: Mapping[str, Any]

    @classmethod
    def of(cls, directory: Path) -> Files:
        """Return the parsed files of a directory."""
        names = ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json")
        return cls(directory, *(read_object(directory, name, TOKENIZER_LIMIT) or {} for name in names))

    def tokenizer_json(self) -> tuple[str, dict[str, Any]] | None:
        """Return the text of tokenizer.json and its parsed content."""
        content = read_bytes(self.directory, "tokenizer.json", TOKENIZER_LIMIT)
        if content is None:
            return None
        path = self.directory / "tokenizer.json"
        parsed = strict_json(content, path, "the file")
        if not (isinstance(parsed, dict) and isinstance(parsed.get("model"), dict)):
            raise InvalidFileError(f"{path}: describes no model; fetch it again")
        return content.decode("utf-8"), parsed

    def sentencepiece(self) -> SentencePiece | None:
        """Return the content of tokenizer.model; None if it does not exist."""
        content = read_bytes(self.directory, "tokenizer.model", TOKENIZER_LIMIT)
        return None if content is None else _sentencepiece.parse(content, self.directory / "tokenizer.model")

    def named_tokens(self) -> list[AddedToken]:
        """Return the tokens that the files name, in the order in which transformers adds them.

        Raises:
            InvalidFileError: an entry is not a token, or two contradict each other.
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
            raise InvalidFileError(f"{path}: added_tokens_decoder is not an object; fetch it again")
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
        """Return the tokens to which the files give a role."""
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
        """Return the entry of a role; special_tokens_map.json is ignored if there is an added_tokens_decoder."""
        sources = [self.config, self.special]
        if "added_tokens_decoder" not in self.config:
            sources.reverse()
        return next((source[role] for source in sources if source.get(role)), None)

    def _extra(self) -> list[Any]:
        tokens: list[Any] = []
        for source in (self.config,) if "added_tokens_decoder" in self.config else (self.config, self.special):
            for key in ("extra_special_tokens", "additional_special_tokens"):
                entries = source.get(key)
                tokens += (
                    entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else []
                )
        return tokens

    def name(self, role: str) -> str | None:
        """Return the token with a role (``bos_token``); None if there is none."""
        token = AddedToken.of(self._entry(role), "tokenizer_config.json")
        return None if token is None else token.content

    def special_ids(self, ids: Mapping[str, int], count: int, fallback: Mapping[str, int | None]) -> dict[str, Any]:
        """Return the ids of the special tokens: by name, else by number in config.json, else from the vocabulary."""
        by_role: dict[str, int | None] = {}
        for role in ("bos", "eos", "unk", "pad"):
            name = self.name(f"{role}_token")
            numbers = self._numbers(f"{role}_token_id", count)
            if name is not None and name in ids:
                by_role[role] = ids[name]
            elif f"{role}_token" not in self.config and numbers:
                by_role[role] = numbers[0]
            else:
                by_role[role] = fallback.get(role)
        return by_role

    def _numbers(self, key: str, count: int) -> list[int]:
        """Return the ids within the vocabulary that config.json states for a key."""
        sections = (self.model_config, self.model_config.get("text_config"))
        return next((n for s in sections if isinstance(s, dict) and (n := _ids(s.get(key), count))), [])

    def ends(self, types: Sequence[TokenType], eos: int | None) -> tuple[int, ...]:
        """Return every id except EOS that generation_config.json and config.json list as an end of text.

        If generation_config.json has some, config.json's may be a library's default; text pieces are then ignored.
        """
        generation = _ids(self.generation.get("eos_token_id"), len(types))
        config = self._numbers("eos_token_id", len(types))
        if generation:
            config = [number for number in config if types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED)]
        return tuple(number for number in dict.fromkeys(generation + config) if number != eos)

    def invalid_ends(self, count: int) -> Iterator[str]:
        """Yield a sentence for each end token of generation_config.json and config.json that does not exist."""
        text = self.model_config.get("text_config")
        sections = {
            "generation_config.json": self.generation,
            "config.json": self.model_config,
            "config.json's text_config": text if isinstance(text, dict) else {},
        }
        for where, section in sections.items():
            given = section.get("eos_token_id")
            listed = given if isinstance(given, list) else [] if given is None else [given]
            for value in listed:
                if not _ids(value, count):
                    yield f"{where}: the end token {shown(value)} is left out, as no token of the {count} has that id"

    def flag(self, key: str, default: bool) -> bool:
        """Return a flag of tokenizer_config.json."""
        value = self.config.get(key)
        return value if isinstance(value, bool) else default

    def chat_templates(self) -> tuple[str | None, dict[str, str]]:
        """Return the default template (Jinja source), and the others by name, from the newest location that has any.

        Raises:
            InvalidFileError: a template's file is too large, not UTF-8, or a link to a place outside the directory.
        """
        templates = self._template_files()
        for source in (self.config, read_object(self.directory, "chat_template.json", TOKENIZER_LIMIT) or {}):
            templates = templates or _named(source.get("chat_template"))
        return templates.pop("default", None), templates

    def _template_files(self) -> dict[str, str]:
        templates: dict[str, str] = {}
        content = read_bytes(self.directory, "chat_template.jinja", TOKENIZER_LIMIT)
        if content is not None:
            templates["default"] = _template(content, self.directory / "chat_template.jinja")
        for path in template_files(self.directory):
            content = read_bytes(path.parent, path.name, TOKENIZER_LIMIT)
            assert content is not None  # it was listed, so it exists
            templates[path.stem] = _template(content, path)
        return templates


def _template(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path}: not UTF-8 at byte {error.start:,}; fetch it again") from error


def template_files(directory: Path) -> tuple[Path, ...]:
    """Return the files of the templates besides the default one.

    Raises:
        InvalidFileError: there are too many, or the directory is a link to a place outside.
    """
    folder = directory / TEMPLATES
    templates = members(folder, "*.jinja")
    if len(templates) > _MOST_TEMPLATES:
        raise InvalidFileError(f"{folder}: holds {len(templates)} templates; a model has at most {_MOST_TEMPLATES}")
    if templates and folder.is_symlink():
        raise InvalidFileError(f"{folder}: the link leads out of the directory; put the templates themselves here")
    return tuple(path for path in templates if path.is_file())


def _named(template: Any) -> dict[str, str]:
    """Return templates by name, from one source or ``[{"name": …, "template": …}]``."""
    if isinstance(template, str):
        return {"default": template}
    entries = template if isinstance(template, list) else ()
    pairs = ((e.get("name"), e.get("template")) for e in entries if isinstance(e, dict))
    return {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}


def _ids(value: Any, count: int) -> list[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and 0 <= n < count]


def checked_id(number: Any, path: Path) -> int:
    """Return a token id from a file.

    Raises:
        InvalidFileError: the value is not a token id.
    """
    if not (type(number) is int and 0 <= number <= LARGEST_ID):
        raise InvalidFileError(f"{path}: {shown(number)} is not a token id; fetch it again")
    return number


def added_token(entry: Any, number: int, path: Path, source: str) -> AddedToken:
    """Return the added token of an object in a file.

    Raises:
        InvalidFileError: it has no content.
    """
    token = AddedToken.of(entry, source, number) if isinstance(entry, dict) else None
    if token is None:
        raise InvalidFileError(f"{path}: an added token without content; fetch it again")
    return token


def _refuse_contradictions(directory: Path, first: Any, second: Any) -> None:
    """Raise if two files give a token different ids, or an id different tokens."""
    contents, ids = {token.content: token for token in first}, {token.id: token for token in first}
    for token in second:
        other = contents.get(token.content, token)
        if other.id != token.id:
            claim = (f"token {shown(token.content)} is", other.id, other.source)
            raise contradiction(str(directory), claim, (token.id, token.source))
        other = ids.get(token.id, token)
        if other.content != token.content:
            claim = (f"id {token.id} is", shown(other.content), other.source)
            raise contradiction(str(directory), claim, (shown(token.content), token.source))


__all__ = ["LARGEST_ID", "TEMPLATES", "TOKENIZER_LIMIT", "Files", "added_token", "checked_id", "template_files"]
