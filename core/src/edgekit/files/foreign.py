"""Reading of untrusted files: limited in size, parsed strictly, never followed out of their directory."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.files.memory import shortage
from edgekit.files.reader import Reader, reading, refuse_special

CURE = "fetch or convert it again"
#: Largest size of a TOML file in bytes; a recipe with a line for every tensor of a large model takes a tenth of it.
TOML_LIMIT = 1 << 20
#: The most digits of an integer in a foreign file; `model_max_length` of some tokenizers has 31.
MAX_DIGITS = 64
#: The most values (members, items) of a JSON text; a tokenizer.json of 256,000 tokens has 2.3 million.
MAX_VALUES = 1 << 23
#: Characters of a file's name; file systems take 255 bytes.
MAX_NAME = 255
#: Half of a surrogate pair, as JSON escapes it: only then can a text hold invalid characters.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: Errors of `os.stat` for a name that does not exist, or a broken link.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_DIGITS = re.compile(r"-?[0-9]{1,19}", re.ASCII)


def shown(value: Any) -> str:
    """Return a value from a foreign file, shortened for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def invalid(path: Path, fault: str, offset: int) -> InvalidFileError:
    """Return the error for a fault at an offset in bytes."""
    return InvalidFileError(f"{path}: {fault} (at byte {offset:,}); {CURE}")


def integer(text: str) -> int | None:
    """Return the number of up to 19 ASCII digits, after an optional minus sign; None for any other text.

    `int` accepts digits of every script and underscores, and raises `ValueError` beyond 4,300 digits.
    """
    return int(text) if _DIGITS.fullmatch(text) else None


def strict_json(text: bytes, path: Path, what: str, offset: int = 0, max_values: int = MAX_VALUES) -> Any:
    """Parse JSON from a foreign file.

    It refuses text that is not UTF-8, duplicate keys, NaN and infinity, integers of more than `MAX_DIGITS` digits,
    excessive nesting, half of a surrogate pair, and more than `max_values` values, which are counted before parsing.

    Raises:
        InvalidFileError: names the file and the fault.
        MemoryShortageError: the parsed values do not fit into memory.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > max_values:
        raise invalid(path, f"{what} has more than {max_values:,} values, which no model's has", offset)
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_short_integer,
            parse_float=_finite,
        )
        if _SURROGATE.search(text):
            _refuse_surrogates(parsed)
    except UnicodeDecodeError as error:
        raise invalid(path, f"{what} is not UTF-8", offset + error.start) from error
    except json.JSONDecodeError as error:
        raise invalid(path, f"{what} is not JSON: {error.msg}", offset + error.pos) from error
    except RecursionError as error:
        raise invalid(path, f"{what} is nested too deeply", offset) from error
    except ValueError as error:
        raise invalid(path, f"{what}: {error}", offset) from error
    except MemoryError as error:
        raise shortage(f"{path}: parsing {what}", 8 * len(text), least=True) from error
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key {shown(twice)} comes twice")
    return members


def _refuse_surrogates(parsed: Any) -> None:
    """Raise `ValueError` if a key or a value contains half of a surrogate pair."""
    waiting = [parsed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key in value:
                if not is_unicode(key):
                    raise ValueError(f"key {shown(key)} is not Unicode text")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not is_unicode(value):
            raise ValueError(f"the text {shown(value)} is not Unicode text")


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8, that is, has no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def utf8(text: str, what: str) -> bytes:
    """Encode a text as UTF-8, for formats that only store UTF-8.

    Args:
        text: what to write.
        what: the text's name, for the message.

    Raises:
        UnsupportedModelError: the text has surrogate escapes: bytes of a GGUF file's string that are not UTF-8.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        part = shown(text[max(0, error.start - 10) : error.end + 10])
        raise UnsupportedModelError(
            f"{what} is not Unicode text near {part}, so only GGUF can hold it; write GGUF, or get the model again"
        ) from error


def readable(text: str) -> str:
    r"""Return the text if it is Unicode; else with ``\xe8`` for a byte that is not UTF-8, ``\ud800`` for a lone half.

    File names from a system with another encoding are not Unicode.
    """
    if is_unicode(text):
        return text
    return text.encode("utf-8", "surrogateescape" if _escaped(text) else "backslashreplace").decode(
        "utf-8", "backslashreplace"
    )


def _escaped(text: str) -> bool:
    return all(not 0xD800 <= ord(character) <= 0xDFFF or 0xDC80 <= ord(character) <= 0xDCFF for character in text)


def _short_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {shown(text)} is beyond what a float holds")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


@contextlib.contextmanager
def native(what: str) -> Iterator[None]:
    """Turn a panic of Rust code into a typed error: pyo3's ``PanicException`` is not an `Exception`.

    Args:
        what: the file or the object that the library was given.

    Raises:
        InvalidFileError: the code inside panicked.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidFileError(f"{what}: the library failed on it ({error!s:.200}); {CURE}") from error


def member(directory: Path, name: str) -> Path | None:
    """Return the directory's file of that name, or None; `name` may come from a foreign file.

    Raises:
        InvalidFileError: the name, or the link of that name, leads out of the directory; or it is a pipe or a device.
    """
    if name != os.path.basename(name) or name in ("", ".", "..") or any(c in name for c in "\\:\0"):
        raise InvalidFileError(
            f"{directory}: {shown(name)} is not a plain file name; files lie in the directory itself"
        )
    if len(name) > MAX_NAME:
        raise InvalidFileError(f"{directory}: a file name of {len(name):,} characters; file systems take {MAX_NAME}")
    path = directory / name
    try:
        with reading(path):
            mode = os.stat(path).st_mode
    except MissingFileError as error:
        if getattr(error.__cause__, "errno", 0) in _ABSENT:
            return None
        raise
    if stat.S_ISDIR(mode):
        return None
    refuse_special(path, mode)
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    if not any(real.is_relative_to(allowed) for allowed in (home, *_hub_blobs(home))):
        raise InvalidFileError(f"{path}: the link leads out of the directory, to {real}; put the file itself here")
    return path


def members(directory: Path, *patterns: str) -> list[Path]:
    """Return the directory's entries whose names match one of the patterns, sorted; none if there is no directory.

    Raises:
        MissingFileError: the directory cannot be listed. `Path.glob` takes it for an empty one then.
    """
    try:
        with reading(directory):
            names = os.listdir(directory)
    except MissingFileError as error:
        if getattr(error.__cause__, "errno", 0) in _ABSENT:
            return []
        raise
    return sorted(directory / name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns))


def _hub_blobs(home: Path) -> tuple[Path, ...]:
    """Return the directories to which links of the Hugging Face hub's cache may lead."""
    return (home.parent.parent / "blobs",) if home.parent.name == "snapshots" else ()


def read_bytes(directory: Path, name: str, limit: int) -> bytes | None:
    """Return a small file's content, or None if it does not exist.

    Raises:
        InvalidFileError: larger than `limit` bytes, or a link that leads out of the directory.
    """
    path = member(directory, name)
    if path is None:
        return None
    content = Reader(path).read_bytes(0, limit + 1)
    if len(content) > limit:
        raise InvalidFileError(f"{path}: larger than {limit:,} bytes; this is no {name} of a model")
    return content


def read_limited(file: Path, limit: int, cure: str, kind: str) -> bytes:
    """Return the content of a file that a person names.

    Args:
        file: its path.
        limit: largest size in bytes.
        cure: what to do if it cannot be read, for the message.
        kind: what it should be, for the message about its size.

    Raises:
        MissingFileError: it cannot be read.
        InvalidFileError: it is longer than `limit` bytes.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
    except OSError as error:
        raise MissingFileError(f"{file}: cannot be read ({error.strerror}); {cure}") from error
    if len(content) > limit:
        raise InvalidFileError(f"{file}: longer than {limit:,} bytes; {kind}")
    return content


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Args:
        file: its path.
        what: what the file describes, for messages: ``"a recipe"``.

    Raises:
        MissingFileError: it cannot be read.
        InvalidFileError: it is not TOML, or longer than `TOML_LIMIT` bytes.
    """
    import tomllib  # few runs read TOML

    content = read_limited(file, TOML_LIMIT, f"give {what}'s TOML file", f"{what} is a short TOML file")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFileError(f"{file}: not TOML ({error!s:.200})") from error


def read_object(directory: Path, name: str, limit: int) -> dict[str, Any] | None:
    """Return a JSON object, or None if the file does not exist.

    Raises:
        InvalidFileError: not a strict JSON object, too large, or a link to a place outside the directory.
    """
    content = read_bytes(directory, name, limit)
    if content is None:
        return None
    parsed = strict_json(content, directory / name, "the file")
    if not isinstance(parsed, dict):
        raise InvalidFileError(f"{directory / name}: holds no JSON object; fetch it again")
    return parsed


__all__ = [
    "CURE",
    "MAX_DIGITS",
    "MAX_NAME",
    "MAX_VALUES",
    "TOML_LIMIT",
    "integer",
    "invalid",
    "is_unicode",
    "member",
    "members",
    "native",
    "read_bytes",
    "read_limited",
    "read_object",
    "read_toml",
    "readable",
    "shown",
    "strict_json",
    "utf8",
]
