"""The directory of a run: what it was begun with, and a record of every finished step.

    run.json               source, texts, context and versions: what every record depends on
    calibration.safetensors
    text.txt               the text that was sampled, where none was given
    baseline/ convert/ quantize/ accelerate/ validate/
        NAME               the artifact of a step, with edgekit's manifest
        NAME.json          its record: hashes, sizes and what was measured
    result.json            the front, the choice and its reasons

A record is written after its artifact is complete, and believed only while the artifact's hashes match; a run that
was killed at any point goes on with the first step without a record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from edgekit.artifact import Artifact
from edgekit.errors import ChangedSourceError, InvalidFileError, UsageError
from edgekit.files.atomic import AtomicFile, write_atomic, writing
from edgekit.files.digests import sha256
from edgekit.files.foreign import read_limited, strict_json
from edgekit.files.guard import refuse_harm
from edgekit.files.reader import reading

HEAD = "run.json"
RESULT = "result.json"
STAGES = ("baseline", "convert", "quantize", "accelerate", "validate")
_LOCK = ".lock"
_LIMIT = 1 << 26


def hashes(files: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file, by its path below `root`."""
    return {file.relative_to(root).as_posix(): sha256(file) for file in files}


def files_of(artifact: Path) -> list[Path]:
    """The files of an artifact: itself, or all in its directory, sorted; edgekit's manifests are left out."""
    if artifact.is_file():
        return [artifact]
    found = (file for file in artifact.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in found if file.name != "edgekit.manifest.json")


def read_json(file: Path) -> dict[str, Any]:
    """Return an object from a JSON file of a run.

    Raises:
        MissingFileError: it cannot be read.
        InvalidFileError: it is not a JSON object, or too large.
    """
    what = "no record of edgekit optimize is so long; delete it to do its step again"
    data = read_limited(file, _LIMIT, "give the directory of a run of edgekit optimize", what)
    parsed = strict_json(data, file, "the file")
    if not isinstance(parsed, dict):
        raise InvalidFileError(f"{file}: not a record of edgekit optimize; delete it to do its step again")
    return parsed


def dumped(record: Mapping[str, Any]) -> bytes:
    """Return a record as deterministic JSON; numbers that are not finite become null."""
    return (json.dumps(_finite(record), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class RunDirectory:
    """A run's directory, locked while it is open.

    Args:
        path: of the directory; made if it is missing.
        source: the model, none of whose files a run may touch.
        head: what every record depends on, for `run.json`: ``source``, the hashes of the model's files, and more.
        restart: forget the records of a run that was begun otherwise.

    Raises:
        UsageError: the directory holds other files, or a run that was begun with other texts, context or versions.
        ChangedSourceError: it holds a run of this source, whose files have changed since.
        LockedError: another process works in it.
        ResourceError: it cannot be written.
    """

    def __init__(self, path: Path, source: Artifact, head: Mapping[str, Any], restart: bool = False) -> None:
        self.path = path
        self._stack = ExitStack()
        refuse_harm(path, source.reads)
        with writing(path):
            if path.exists() and not path.is_dir():
                raise UsageError(f"{path} is a file; choose a directory for the run")
            foreign = path.exists() and not (path / HEAD).exists() and any(_visible(path))
            if foreign:
                raise UsageError(f"{path}: it holds other files and no run of edgekit optimize; choose a new directory")
            path.mkdir(parents=True, exist_ok=True)
        lock = AtomicFile(path / _LOCK)  # never committed: it holds the directory's lock alone
        self._stack.callback(lock.close, keep=False)
        try:
            self._begin(source, head, restart)
        except BaseException:
            self.close()
            raise

    def _begin(self, source: Artifact, head: Mapping[str, Any], restart: bool) -> None:
        present = read_json(self.path / HEAD) if (self.path / HEAD).exists() else None
        wanted = json.loads(dumped(head))
        if present is not None and present != wanted and not restart:
            _refuse_other(self.path, source, present, wanted)
        if present != wanted:
            for stage in STAGES:
                for record in (self.path / stage).glob("*.json"):
                    if not record.name.endswith(".edgekit.json"):
                        record.unlink()
            write_atomic(self.path / HEAD, dumped(head))
        for stage in STAGES:
            (self.path / stage).mkdir(exist_ok=True)

    def artifact(self, stage: str, name: str) -> Path:
        """The path of a step's artifact."""
        return self.path / stage / name

    def known(self, stage: str, name: str) -> dict[str, Any] | None:
        """Return the record of a finished step; None if there is none, or if its artifact is not what it was."""
        file = self._record(stage, name)
        if not file.exists():
            return None
        record = read_json(file)
        there = self.artifact(stage, record["file"]) if record.get("file") else None
        if there is not None and (not there.exists() or hashes(files_of(there), self.path) != record["sha256"]):
            return None
        return record

    def keep(self, stage: str, name: str, record: Mapping[str, Any], artifact: Path | None = None) -> dict[str, Any]:
        """Write the record of a finished step, with the hashes of its artifact; return it as it will be read."""
        with reading(self.path):
            digests = {} if artifact is None else hashes(files_of(artifact), self.path)
        whole = {**record, "name": name, "stage": stage, "file": artifact.name if artifact else None, "sha256": digests}
        data = dumped(whole)
        write_atomic(self._record(stage, name), data)
        read: dict[str, Any] = json.loads(data)
        return read

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result of the run."""
        write_atomic(self.path / RESULT, dumped(result))

    def close(self) -> None:
        """Release the directory's lock."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _record(self, stage: str, name: str) -> Path:
        return self.path / stage / f"{name}.json"


def _visible(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if not entry.name.startswith(".")]


def _refuse_other(path: Path, source: Artifact, present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    cure = "choose another directory, or begin anew with --restart (restart=True)"
    then, now = present.get("source", {}), wanted["source"]
    if then.get("files") != now["files"]:
        if then.get("path") != now["path"]:
            raise UsageError(f"{path}: it holds a run of {then.get('path')}, not of {now['path']}; {cure}")
        changed = sorted(
            n for n in {*then.get("files", {}), *now["files"]} if then["files"].get(n) != now["files"].get(n)
        )
        raise ChangedSourceError(
            f"{source.path}: {', '.join(changed)} changed since the run in {path} was begun, whose records are of the "
            f"model as it was; {cure}"
        )
    differing = sorted(key for key in {*present, *wanted} if present.get(key) != wanted.get(key))
    shown = ", ".join(f"{key} was {present.get(key)!r:.60} and is {wanted.get(key)!r:.60}" for key in differing)
    raise UsageError(f"{path}: it holds a run that was begun otherwise ({shown}); {cure}")


__all__ = ["HEAD", "RESULT", "STAGES", "RunDirectory", "dumped", "files_of", "hashes", "read_json"]
