"""Nothing half-written: files and directories that appear whole, or not at all, and resume when interrupted.

A file is written beside its target as ``.<name>.partial`` under an exclusive lock, synced, and renamed into
place. With a fingerprint, a journal ``.<name>.partial.json`` keeps one JSON line for each completed unit (a
tensor): where it ended, a checksum of everything before, and a note. A later run with the same fingerprint
checks the partial file against the journal and goes on after the last unit. The fingerprint may come late (it
takes the hash of large sources); the units before it count from then on.

Units are not synced one by one: what a killed process has written survives it, and what a power cut took
fails the checksum, so that the run starts anew. `commit` syncs everything before the rename.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import attrs

from edgekit.errors import EdgekitError, LockedError, ResourceError, UsageError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Names in a directory that an artifact's writer may replace; anything else is somebody's own.
ARTIFACT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "edgekit.manifest.json",
)
_CURES = {
    errno.ENOSPC: "free some space, or choose a target on another disk",
    errno.EDQUOT: "free some of your quota, or choose a target on another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose a file system that holds larger files",
    errno.EACCES: "give yourself write permission, or choose another target",
    errno.EPERM: "give yourself write permission, or choose another target",
    errno.EROFS: "choose a target on a file system that is not read-only",
    errno.ENOENT: "create the directory first, or choose another target",
    errno.ENOTDIR: "choose a target inside a directory",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_CHUNK = 1 << 22
#: Seconds that an interrupted run waits for its fingerprint; without it the units cannot be kept.
_PATIENCE = 2.0
#: Of what is to be written; the function is called in a thread, where hashing sources takes a while.
Fingerprint = bytes | Callable[[], bytes]


@contextlib.contextmanager
def writing(path: Path, need: str = "") -> Iterator[None]:
    """Turn an `OSError` inside into a `ResourceError` that names the path, the need and the cure."""
    try:
        yield
    except EdgekitError:
        raise
    except OSError as error:
        cure = _CURES.get(error.errno or 0, "choose another target")
        what = f" ({need})" if need else ""
        raise ResourceError(f"cannot write {path}{what}: {error.strerror}; {cure}") from error


def require_space(directory: Path, nbytes: int, target: Path) -> None:
    """Raise `ResourceError` where the disk that holds `directory` has less than `nbytes` bytes free."""
    with writing(target):
        free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise ResourceError(f"cannot write {target}: {nbytes:,} bytes needed, {free:,} free; {_CURES[errno.ENOSPC]}")


@attrs.frozen
class _Unit:
    """One journal line: where a unit ended, the checksum of the file up to there, and the caller's note."""

    end: int
    crc: int
    note: str

    def to_json(self) -> bytes:
        return json.dumps(attrs.astuple(self)).encode() + b"\n"


class AtomicFile:
    """A binary file that replaces its target when it is complete.

    Example:
        >>> with AtomicFile(path, fingerprint=b"source and recipe") as file:  # doctest: +SKIP
        ...     for unit in units[file.done :]:
        ...         file.write(unit)
        ...         file.unit_done()
        ...     file.commit()

    Args:
        target: the file to replace.
        fingerprint: of what is to be written; a run with the same one goes on where an earlier one was interrupted.
            A function that gives it is called in a thread, and waited for only where there is something to resume.
        named: what messages call the file, where it is not the target.

    Attributes:
        target: the path that `commit` replaces; links are followed.
        done: units that are complete, those of an interrupted run included.
        notes: what `unit_done` was told for each of them.
        offset: bytes written so far; where the next `write` goes.

    Raises:
        ResourceError: no permission, no directory, a read-only or full disk.
        LockedError: another writer has the same target.
        UsageError: the target is a directory, a device or a pipe.
    """

    def __init__(self, target: Path, *, fingerprint: Fingerprint | None = None, named: Path | None = None) -> None:
        self.target = Path(os.path.realpath(target))
        self._named = named or self.target  # in messages: the place in a directory that is not there yet
        with writing(self._named):
            if self.target.is_dir():
                raise UsageError(f"{target} is a directory; name a file to write")
            if self.target.exists() and not self.target.is_file():  # a rename would put a file in a device's place
                raise UsageError(f"{target} is a device or a pipe, not a regular file; name a file to write")
        self._partial = self.target.with_name(f".{self.target.name}.partial")
        self._journal = _Journal(self.target.with_name(f".{self.target.name}.partial.json"), fingerprint)
        self._crc = 0
        self.offset = 0
        self._closed = False
        with writing(self._named):
            self._lock = _Lock.of(self._partial, self.target)
            try:
                self._file = open(_open_partial(self._partial), "r+b", buffering=0)  # noqa: SIM115
                self._resume()
            except BaseException:
                self._lock.release()
                raise

    @property
    def done(self) -> int:
        """Number of complete units."""
        return len(self._journal.units)

    @property
    def notes(self) -> list[str]:
        """The note of each complete unit."""
        return [unit.note for unit in self._journal.units]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            ResourceError: the disk is full, or another limit was hit; the target is untouched.
        """
        if not (view := memoryview(data)).nbytes:
            return
        view = view.cast("B")
        with writing(self._named, f"{len(view):,} bytes at offset {self.offset:,}"):
            _write_all(self._file, view)
        self._crc = zlib.crc32(view, self._crc)
        self.offset += len(view)

    def unit_done(self, note: str = "") -> None:
        """Note that everything so far is worth keeping, should this run be interrupted."""
        with writing(self._named, "its journal"):
            self._journal.add(_Unit(self.offset, self._crc, note))

    def overwrite(self, offset: int, data: bytes) -> None:
        """Replace bytes that were written before, e.g. a header reserved as zeros; only before `commit`.

        A run that is resumed afterwards finds the checksum broken and starts anew.
        """
        if offset + len(data) > self.offset:
            raise UsageError(f"{self.target}: only bytes below {self.offset} can be overwritten")
        with writing(self._named, f"{len(data):,} bytes at offset {offset:,}"):
            self._file.seek(offset)
            _write_all(self._file, memoryview(data))
            self._file.seek(self.offset)

    def reserve(self, nbytes: int) -> None:
        """Check that a file of `nbytes` bytes in all fits on the disk.

        Raises:
            ResourceError: it does not.
        """
        require_space(self.target.parent, nbytes - self.offset, self._named)

    def commit(self) -> None:
        """Sync, and put the file in the target's place."""
        with writing(self._named):
            os.fsync(self._file.fileno())
            if os.name == "nt":  # an open file cannot be renamed there
                self._file.close()
            os.replace(self._partial, self.target)
            _sync_directory(self.target.parent)
            self._journal.drop()
        self._let_go()

    def close(self, keep: bool = True) -> None:
        """Let go; without `commit` the target stays as it was.

        Complete units are kept for a later run to resume, unless `keep` is False.
        """
        if self._closed:
            return
        with contextlib.suppress(OSError):
            if not (keep and self._journal.kept()):
                self._journal.drop()
                self._partial.unlink(missing_ok=True)
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        self._closed = True
        self._file.close()
        self._lock.release()

    def _resume(self) -> None:
        units = self._intact(self._journal.read())
        if units:
            self.offset, self._crc = units[-1].end, units[-1].crc
        self._file.truncate(self.offset)
        self._file.seek(self.offset)
        self._journal.start(units)

    def _intact(self, units: list[_Unit]) -> list[_Unit]:
        """All of the units where the partial file still holds them, none where it does not."""
        if not units or os.fstat(self._file.fileno()).st_size < units[-1].end:
            return []
        return units if _checksum(self._file, units[-1].end) == units[-1].crc else []


class _Journal:
    """The units that are complete, a line each, and a line with the fingerprint, wherever it comes.

    Attributes:
        units: all of them, those of an interrupted run first.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint | None) -> None:
        self.units: list[_Unit] = []
        self._path = path
        self._fingerprint = fingerprint
        self._signed: Future[None] = Future()  # done when the line with the fingerprint is written

    def read(self) -> list[_Unit]:
        """The units that a run of the same fingerprint noted; a torn last line is left out."""
        if self._fingerprint is None or not self._path.is_file():
            return []
        *lines, _ = self._path.read_bytes().split(b"\n")
        self._fingerprint = _called(self._fingerprint)
        signature = _signature(self._fingerprint)
        units: list[_Unit] = []
        if signature in lines:
            with contextlib.suppress(ValueError, TypeError):
                for line in lines:
                    if line != signature:
                        units.append(_Unit(*json.loads(line)))  # noqa: PERF401 (keep those before a bad line)
        return units

    def start(self, units: list[_Unit]) -> None:
        """Begin anew with the units that are intact."""
        self.units = list(units)
        if self._fingerprint is None:
            self.drop()
            return
        self._path.write_bytes(b"".join(unit.to_json() for unit in units))
        if callable(self._fingerprint):
            threading.Thread(target=self._sign, name="edgekit-fingerprint", daemon=True).start()
        else:
            self._sign()
            self._signed.result()

    def add(self, unit: _Unit) -> None:
        """One more is complete."""
        if self._fingerprint is not None:
            with open(self._path, "ab") as file:
                file.write(unit.to_json())
        self.units.append(unit)

    def kept(self) -> bool:
        """Whether a later run will find the units; waits a moment for the fingerprint."""
        if self._fingerprint is None or not self.units:
            return False
        wait([self._signed], _PATIENCE)
        return self._signed.done() and self._signed.exception() is None

    def drop(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def _sign(self) -> None:
        assert self._fingerprint is not None
        try:
            line = _signature(_called(self._fingerprint)) + b"\n"
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)  # no O_CREAT: it may have been dropped meanwhile
            with open(handle, "ab") as file:
                file.write(line)
        except BaseException as error:  # `kept` and `start` ask for it
            self._signed.set_exception(error)
        else:
            self._signed.set_result(None)


def _called(fingerprint: Fingerprint) -> bytes:
    return fingerprint if isinstance(fingerprint, bytes) else fingerprint()


def _signature(fingerprint: bytes) -> bytes:
    return json.dumps({"fingerprint": fingerprint.hex()}).encode()


def _write_all(file: Any, view: memoryview) -> None:
    while view:  # a raw write may take less than it is given
        view = view[file.write(view[: 1 << 30]) :]


def write_atomic(target: Path, data: bytes, *, named: Path | None = None) -> None:
    """Replace a small file as a whole; `named` and errors as for `AtomicFile`."""
    with AtomicFile(target, named=named) as file:
        file.write(data)
        file.commit()


class AtomicDirectory:
    """A directory that replaces its target when it is complete.

    Files are written in `path`, a hidden directory beside the target; where `file` was given a fingerprint,
    an interrupted run is found again there.

    Attributes:
        target: the directory that `commit` replaces; links are followed.
        path: where to write meanwhile.
        owned: patterns of file names that may be replaced.

    Raises:
        ResourceError: no permission, no parent directory, a read-only or full disk.
        LockedError: another writer has the same target.
        UsageError: the target is a file, or holds files that are not an artifact's; they are never deleted.
    """

    def __init__(self, target: Path, *, owned: tuple[str, ...] = ARTIFACT_FILES) -> None:
        self.target = Path(os.path.realpath(target))
        self.owned = owned
        self.path = self.target.with_name(f".{self.target.name}.partial")
        self._old = self.target.with_name(f".{self.target.name}.old")
        self._files: list[AtomicFile] = []
        self._closed = False
        with writing(self.target):
            self._recover()
            self._refuse_foreign()
            self.path.mkdir(exist_ok=True)
            self._lock = _Lock.of(self.path, self.target)

    def file(self, name: str, *, fingerprint: Fingerprint | None = None) -> AtomicFile:
        """Begin, or resume, a file of the directory; commit it before the directory."""
        file = AtomicFile(self.path / name, fingerprint=fingerprint, named=self.target / name)
        self._files.append(file)
        return file

    def write(self, name: str, data: bytes) -> None:
        """Write a small file of the directory, or of a directory in it (``name/file``)."""
        (self.path / name).parent.mkdir(exist_ok=True)
        write_atomic(self.path / name, data, named=self.target / name)

    def reserve(self, nbytes: int) -> None:
        """Check that `nbytes` more bytes fit on the disk; raises `ResourceError` where they do not."""
        require_space(self.path, nbytes, self.target)

    def commit(self) -> None:
        """Sync, and put the directory in the target's place."""
        with writing(self.target):
            self._refuse_foreign()
            _sync_directory(self.path)
            if self.target.exists():
                os.rename(self.target, self._old)
            os.rename(self.path, self.target)
            _sync_directory(self.target.parent)
            shutil.rmtree(self._old, ignore_errors=True)
        self._let_go()

    def close(self, keep: bool = True) -> None:
        """Let go; without `commit` the target stays as it was.

        Files that can be resumed are kept for a later run, unless `keep` is False.
        """
        if self._closed:
            return
        for file in self._files:
            file.close(keep)
        if not any(self.path.glob(".*.partial.json")):
            shutil.rmtree(self.path, ignore_errors=True)
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        self._closed = True
        self._lock.release()

    def _recover(self) -> None:
        """Undo a swap that was interrupted between its two renames."""
        if self._old.is_dir() and not self.target.exists():
            os.rename(self._old, self.target)

    def _owns(self, entry: Path) -> bool:
        """Whether a file of the target, or a directory with all its files, is an artifact's."""
        if entry.is_file():
            return any(fnmatch.fnmatch(entry.name, pattern) for pattern in self.owned)
        patterns = [pattern for pattern in self.owned if pattern.startswith(f"{entry.name}/")]
        inside = list(entry.iterdir()) if patterns and entry.is_dir() and not entry.is_symlink() else []
        names = [f"{entry.name}/{file.name}" for file in inside if file.is_file()]
        return len(names) == len(inside) > 0 and all(any(fnmatch.fnmatch(n, p) for p in patterns) for n in names)

    def _refuse_foreign(self) -> None:
        if self.target.exists() and not self.target.is_dir():
            raise UsageError(f"{self.target} is a file; name a directory to write")
        for entry in self.target.iterdir() if self.target.exists() else ():
            if not self._owns(entry):
                raise UsageError(
                    f"{self.target} holds {entry.name}, which is no part of an artifact; "
                    "move it away, or choose another target"
                )


@attrs.frozen
class _Lock:
    """An exclusive lock on a file or a directory, held until `release` or the process's end."""

    fd: int | None  # holds an flock
    beside: Path | None  # or a lock file, where the system has no flock

    @classmethod
    def of(cls, path: Path, target: Path) -> _Lock:
        """Lock `path`, creating it where it is no directory; links are not followed."""
        fd = None if fcntl is None else _flocked(path, target)
        return cls(None, _lock_file(path, target)) if fd is None else cls(fd, None)

    def release(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
        if self.beside is not None:
            self.beside.unlink(missing_ok=True)


def _open_partial(path: Path) -> int:
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    return os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _flocked(path: Path, target: Path) -> int | None:
    """A descriptor that holds the lock; None on file systems that have none."""
    while True:
        fd = _open_partial(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[union-attr]
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise LockedError(f"another process is writing {target}; wait for it, or stop it") from error
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return None
            raise
        if _same(fd, path):
            return fd
        os.close(fd)  # its last holder has renamed or removed it meanwhile


def _lock_file(path: Path, target: Path) -> Path:
    beside = path.with_name(path.name + ".lock")
    try:
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise LockedError(f"another process is writing {target}; wait for it, or delete {beside} if none is") from error
    return beside


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _checksum(file: Any, length: int) -> int:
    """CRC-32 of the file's first `length` bytes."""
    crc = 0
    file.seek(0)
    while length > 0 and (chunk := file.read(min(length, _CHUNK))):
        crc, length = zlib.crc32(chunk, crc), length - len(chunk)
    return crc


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
