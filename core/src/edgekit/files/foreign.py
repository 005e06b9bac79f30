"""Foreign files are hostile: read only so much, parsed strictly, and never a path that leads elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError, MissingFileError

CURE = "fetch or convert it again"


def shown(value: Any) -> str:
    """A value from a foreign file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def invalid(path: Path, fault: str, offset: int) -> InvalidFileError:
    """The error for a fault at an offset in bytes."""
    return InvalidFileError(f"{path}: {fault} (at byte {offset:,}); {CURE}")


def strict_json(text: bytes, path: Path, what: str, offset: int = 0) -> Any:
    """Parse JSON from a foreign file: UTF-8, no key twice, no NaN or infinity, no abysmal nesting.

    Raises:
        InvalidFileError: names the file and the fault.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise invalid(path, f"{what} is not UTF-8", offset + error.start) from error
    except json.JSONDecodeError as error:
        raise invalid(path, f"{what} is not JSON: {error.msg}", offset + error.pos) from error
    except RecursionError as error:
        raise invalid(path, f"{what} is nested too deeply", offset) from error
    except ValueError as error:
        raise invalid(path, f"{what}: {error}", offset) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} comes twice")
    for key in found:
        _refuse_surrogates(key)
    return found


def _refuse_surrogates(key: str) -> None:
    try:
        key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"key {shown(key)} is no Unicode text") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def member(directory: Path, name: str) -> Path | None:
    """The directory's file of that name, or None; `name` may come from a foreign file.

    Raises:
        InvalidFileError: the name, or the link of that name, leads out of the directory.
    """
    if name != os.path.basename(name) or name in ("", ".", "..") or any(c in name for c in "\\:\0"):
        raise InvalidFileError(f"{directory}: {name!r} is no plain file name; files lie in the directory itself")
    path = directory / name
    if not path.is_file():
        return None
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    if not any(real.is_relative_to(allowed) for allowed in (home, *_hub_blobs(home))):
        raise InvalidFileError(f"{path}: the link leads out of the directory, to {real}; put the file itself here")
    return path


def _hub_blobs(home: Path) -> tuple[Path, ...]:
    """Where links lead in a directory of the Hugging Face hub's cache, ``models--x--y/snapshots/<revision>``."""
    return (home.parent.parent / "blobs",) if home.parent.name == "snapshots" else ()


def read_bytes(directory: Path, name: str, limit: int) -> bytes | None:
    """A small file's content, or None where it is absent.

    Raises:
        InvalidFileError: larger than `limit` bytes, or a link that leads out of the directory.
    """
    path = member(directory, name)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            # Python allocates what is asked for before it reads, so no more is asked for than there is.
            content = file.read(min(limit, path.stat().st_size) + 1)
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > limit:
        raise InvalidFileError(f"{path}: larger than {limit:,} bytes; this is no {name} of a model")
    return content


def read_object(directory: Path, name: str, limit: int) -> dict[str, Any] | None:
    """A JSON object, or None where the file is absent.

    Raises:
        InvalidFileError: not strict JSON, no object, too large, or a link that leads out of the directory.
    """
    content = read_bytes(directory, name, limit)
    if content is None:
        return None
    parsed = strict_json(content, directory / name, "the file")
    if not isinstance(parsed, dict):
        raise InvalidFileError(f"{directory / name}: holds no JSON object; fetch it again")
    return parsed
