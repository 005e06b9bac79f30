"""A file and the manifest beside it, with one commit point: the file's own rename.

The manifest states to which file it belongs: ``"file"`` holds the file's length and a fingerprint of it. While a
file replaces another, the manifest on disk holds both records, the older one under ``"previous"``; readers
use the one that belongs to the file. A manifest whose records belong to another file is stale and is ignored.

The fingerprint is the SHA-256 of files up to 8 MiB; of larger ones of the first MiB, the last 64 KiB and 64
pieces of 4 KiB between them, so that opening a model need not read all of it. It tells files of different
models apart; it does not detect damage.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import read_bytes, strict_json

SUFFIX = ".edgekit.json"
INSIDE = "edgekit.manifest.json"
#: Largest size in bytes of a manifest; one or two lines for each tensor take less than a tenth.
LIMIT = 64 << 20
_WHOLE, _HEAD, _TAIL, _PIECE, _PIECES = 8 << 20, 1 << 20, 64 << 10, 4 << 10, 64
Record = dict[str, Any]


def beside(target: Path) -> Path:
    """Return the path of a single file's manifest."""
    return target.with_name(target.name + SUFFIX)


def seal(file: BinaryIO) -> Record:
    """Return the length and fingerprint of an open file."""
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256()
    for begin, length in _pieces(size):
        file.seek(begin)
        digest.update(file.read(length))
    return {"bytes": size, "sample": digest.hexdigest()}


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    if size <= _WHOLE:
        yield 0, size
        return
    yield 0, _HEAD
    for number in range(_PIECES):
        yield _HEAD + (size - _HEAD - _TAIL - _PIECE) * number // _PIECES, _PIECE
    yield size - _TAIL, _TAIL


def seal_of(path: Path) -> Record | None:
    """Return the seal of a file; None if it does not exist.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return seal(file)
    except FileNotFoundError:
        return None


def belonging(record: Any, paths: Record | None) -> Record | None:
    """Return the record that belongs to the file with that seal: the newest, the previous one, or None."""
    for candidate in (record, record.get("previous")) if isinstance(record, dict) and paths else ():
        if isinstance(candidate, dict) and candidate.get("file") == paths:
            return {key: value for key, value in candidate.items() if key != "previous"}
    return None


def sealed(manifest: bytes, file: Path) -> Record:
    """Return a manifest that states to which file it belongs; `manifest` is a JSON object."""
    return {**json.loads(manifest), "file": seal_of(file)}


def previous(manifest: bytes | None, file: Path) -> Record:
    """Return the record to keep of the manifest beside a file that is about to be replaced; empty if there is none."""
    try:
        record = belonging(json.loads(manifest or b"null"), seal_of(file))
    except (ValueError, RecursionError):
        return {}
    return {"previous": record} if record else {}


def read_record(file: Path) -> Record | None:
    """Return the record of the file's current content from the manifest beside it; None if there is none.

    Raises:
        InvalidFileError: the manifest is not strict JSON, or too large.
        OSError: the file cannot be read.
    """
    path = beside(file)
    content = read_bytes(path.parent, path.name, LIMIT)
    return None if content is None else belonging(strict_json(content, path, "the file"), seal_of(file))


def written_here(target: Path) -> bool:
    """Return whether edgekit wrote the file or directory, according to its manifest.

    Raises:
        MissingFileError, OSError: the manifest, or the file, cannot be read.
    """
    try:
        if target.is_dir():
            content = read_bytes(target, INSIDE, LIMIT)
            record = None if content is None else strict_json(content, target / INSIDE, "the file")
        else:
            record = read_record(Path(os.path.realpath(target)))
    except InvalidFileError:
        return False
    return isinstance(record, dict) and "schema" in record


def dumped(record: Record) -> bytes:
    """Return a manifest's bytes, the same as `edgekit.manifest.Manifest.to_json`."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


__all__ = [
    "INSIDE",
    "LIMIT",
    "belonging",
    "beside",
    "dumped",
    "previous",
    "read_record",
    "seal",
    "seal_of",
    "sealed",
    "written_here",
]
