"""Records measured values in a JSON file, one per line, so that a later run with the same inputs resumes after them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError, UsageError
from edgekit.files.atomic import AtomicFile
from edgekit.files.foreign import read_limited, strict_json

#: Largest size of a record in bytes; a value takes about a hundred.
LIMIT = 256 << 20
_VALUES = 1 << 22
Entry = dict[str, Any]


class Record:
    """The values of one run, in memory or in a file.

    Runs with the same inputs request the same values in the same order. Values in the file are returned without
    measuring, so that an interrupted and resumed run makes the same choice as an uninterrupted one.

    Args:
        path: the file; None keeps the values in memory.
        head: everything that the values depend on, and their ``format``; JSON.
        overwrite: replace a file that is not a record of this format.

    Raises:
        UsageError: the file exists and is not such a record.
        ResourceError: the file cannot be written.
        LockedError: another process writes it.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any], overwrite: bool = False) -> None:
        self.head = dict(head)
        self.entries: list[Entry] = []
        self._path, self._next = path, 0
        self._file: AtomicFile | None = None
        if path is None:
            return
        there = _read(path, self.head, overwrite)
        if there is not None:
            self.entries = there
            return
        fingerprint = hashlib.sha256(json.dumps(self.head, sort_keys=True).encode()).digest()
        self._file = AtomicFile(path, fingerprint=fingerprint)
        self.entries = [json.loads(note) for note in self._file.notes]
        if not self._file.done:
            self._file.write(_opening(self.head))

    def value(self, key: Entry, measure: Callable[[], Entry]) -> Entry:
        """Return the next value, ``{**key, **value}``: the recorded one, or else the result of `measure`, as JSON."""
        if self.known:
            self._next += 1
            return self._checked(self.entries[self._next - 1], key)
        entry: Entry = json.loads(json.dumps({**key, **measure()}))
        self.entries.append(entry)
        self._next += 1
        if self._file is not None:
            text = json.dumps(entry)
            self._file.write((",\n  " if self._file.done else "\n  ").encode() + text.encode())
            self._file.unit_done(text)
        return entry

    def _checked(self, entry: Entry, key: Entry) -> Entry:
        if not key.items() <= entry.items():
            raise InvalidFileError(
                f"{self._path}: it holds {entry!s:.200} where this run measures {key!s:.200}; remove the file"
            )
        return entry

    @property
    def known(self) -> bool:
        """Whether the next value is recorded."""
        return self.ahead > 0

    @property
    def ahead(self) -> int:
        """How many of the next values are recorded."""
        return len(self.entries) - self._next

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result after the values, and move the file into place."""
        if self._file is not None:
            self._file.write(f'\n ],\n "result": {json.dumps(dict(result))}\n}}\n'.encode())
            self._file.commit()

    def close(self) -> None:
        """Close the file; without `finish` its values are kept for a later run."""
        if self._file is not None:
            self._file.close()


def _opening(head: Mapping[str, Any]) -> bytes:
    lines = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    return f'{{\n{lines} "measured": ['.encode()


def _read(path: Path, head: Mapping[str, Any], overwrite: bool) -> list[Entry] | None:
    """Return the values of a complete record with the same head; None if there is none, or it may be replaced."""
    if not path.exists():
        return None
    try:
        parsed = read(path)
    except InvalidFileError:
        parsed = {}
    if parsed.get("format") != head["format"]:
        if overwrite:
            return None
        raise UsageError(
            f"{path}: it is there already and is no {head['format']} file; choose another file, or replace it with "
            "overwrite=True (--force)"
        )
    measured = parsed.get("measured")
    same = {key: parsed.get(key) for key in head} == json.loads(json.dumps(head))
    return measured if same and isinstance(measured, list) else None


def read(path: Path) -> dict[str, Any]:
    """Return a record as a dictionary: its head, ``measured``, and ``result``.

    Raises:
        MissingFileError: the file cannot be read.
        InvalidFileError: the file is not a JSON object, or too large.
    """
    content = read_limited(path, LIMIT, "check that it is there", "no record of measurements is")
    parsed = strict_json(content, path, "the record", 16, _VALUES)
    if not isinstance(parsed, dict):
        raise InvalidFileError(f"{path}: no JSON object, so no record of measurements")
    return parsed


__all__ = ["Entry", "Record", "read"]
