"""Atomic writing: files and directories that appear whole or not at all, and can be resumed.

Everything is written beside its target, under an exclusive lock that is taken before any file is examined, synced,
and put in the target's place at one commit point; `docs/explanation/commit.md` has every step, and what the next run
does if a step is interrupted.

With a fingerprint, a journal notes each completed unit (a tensor): where it ended, a checksum of everything before,
and a note. A later run with the same fingerprint checks the partial file against the journal and continues after the
last valid unit. The fingerprint may be known late (it includes the hash of large sources); earlier units are valid
from then on.

Units are not synced one by one: data that a killed process has written is kept by the system, and data lost in a power
cut fails the checksum, so that the run continues before it. `commit` syncs everything before the rename.

A unit that was given its place (`AtomicFile.allot`) is written in any order, by several threads. Its complete pieces
are noted as they come, and a later run does without them.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import zlib
from collections import deque
from collections.abc import Collection, Container, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from edgekit.errors import ResourceError, UsageError
from edgekit.files import guard, pairs
from edgekit.files._crc import combined
from edgekit.files._journal import Fingerprint, Journal, Piece, Unit
from edgekit.files._lock import Lock
from edgekit.files._problems import require_space, writing
from edgekit.files._shared import SharedFile, write_there
from edgekit.files._swap import (
    NAME_LIMIT,
    allocate,
    clear,
    entries_below,
    hidden,
    recover,
    replace_directory,
    replace_pair,
    start_writing,
    sync_directory,
    sync_tree,
    write_all,
    write_small,
)
from edgekit.files.foreign import read_bytes, strict_json
from edgekit.files.guard import ARTIFACT_FILES

_JOURNAL = ".partial.json"
_CHUNK = 1 << 22
#: Bytes of zeros that are written between two places; a longer gap is left to the file system.
_GAP = 1 << 12


@attrs.frozen(eq=False)
class Region:
    """The place of a unit whose bytes come in any order; made by `AtomicFile.allot`.

    Attributes:
        begin, end: its first byte in the file, and the one after its last.
        pieces: what this run has written of it or taken over, by the offset of each piece.
        left: what an interrupted run has written of it, by the offset of each piece.
    """

    begin: int
    end: int
    pieces: dict[int, Piece] = attrs.field(factory=dict)
    left: dict[int, Piece] = attrs.field(factory=dict)

    def take(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Take over what an interrupted run has written: exactly these pieces, each its offset and bytes, or nothing.

        Returns:
            Whether they are complete. Pieces that were cut elsewhere count for nothing.
        """
        wanted = [(self.left.get(offset), nbytes) for offset, nbytes in ranges if nbytes]
        whole = [piece for piece, nbytes in wanted if piece is not None and piece.bytes == nbytes]
        if len(whole) < len(wanted):
            return False
        self.pieces.update((piece.at, piece) for piece in whole)
        return True


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
        fingerprint: of what is to be written: source, recipe, format and version. A run with the same one continues
            where an earlier one was interrupted. A function that returns it is called in a thread, and awaited only
            if there is something to resume.
        manifest: whether `commit` will receive a manifest, which lies beside the target.
        named: the file's name in messages, if it is not the target.
        lock: whether to take the target's lock; False if the caller has locked its directory.

    Attributes:
        target: the path that `commit` replaces; links are followed.
        done: units that are complete, those of an interrupted run included.
        notes: the note of each unit, from `unit_done`.
        offset: bytes written so far; where the next `write` goes.

    Raises:
        ResourceError: no permission, no directory, a name too long, a read-only or full disk.
        LockedError: another writer has the same target.
        UsageError: the target is a directory, a device or a pipe; or as `edgekit.files.guard.Work.admit`.
    """

    def __init__(
        self,
        target: Path,
        *,
        fingerprint: Fingerprint | None = None,
        manifest: bool = False,
        named: Path | None = None,
        lock: bool = True,
    ) -> None:
        self.target = Path(os.path.realpath(target))
        self._named = named or self.target  # in messages: the path in a directory that does not exist yet
        self._reading = guard.current()
        self._work = self._reading if lock else None
        self._partial = hidden(self.target, "partial")
        self._journal = Journal(hidden(self.target, "partial.json"), self.target.name, self._vouched(fingerprint))
        self._crc = 0
        self.offset = 0
        self._unit = 0, 0  # where the unit under way begins, and the checksum of everything before
        self._scattered = False
        self._left: dict[int, Piece] = {}  # complete pieces of an interrupted run, after its last complete unit
        self._regions: deque[Region] = deque()
        self._seeking = threading.Lock()  # only where the system has no positioned writes
        self._planned = 0
        self._shared: SharedFile | None = None
        self._longer = self._closed = False
        with writing(self._named):
            _refuse_long_name(pairs.beside(self.target) if manifest else self.target)
            _refuse_what_is_no_file(self.target, target)
            if self._work:
                guard.refuse_harm(self.target, self._work.reads)
            self._lock = Lock.beside(self.target) if lock else None
            try:
                self._begin(target)
            except BaseException:
                self._let_go()
                raise

    @property
    def done(self) -> int:
        """Number of complete units."""
        return len(self._journal.units)

    @property
    def notes(self) -> list[str]:
        """The note of each complete unit."""
        return [unit.note for unit in self._journal.units]

    def unit(self, index: int) -> bytes:
        """Return the bytes of a complete unit.

        Raises:
            ResourceError: they cannot be read.
        """
        units = self._journal.units
        begin = units[index - 1].end if index else 0
        with writing(self._named, "what was written of it"):
            self._file.seek(begin)
            data: bytes = self._file.read(units[index].end - begin)
            self._file.seek(self.offset)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            ResourceError: the disk is full, or another limit was hit; the target is untouched.
        """
        if not (view := memoryview(data)).nbytes:
            return
        self._refuse_allotted()
        view = view.cast("B")
        with writing(self._named, f"{len(view):,} bytes at offset {self.offset:,}"):
            write_all(self._file, view)
        self._crc = zlib.crc32(view, self._crc)
        self.offset += len(view)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of the unit under way at their place in the file: its parts may come in any order.

        What no write covers is zeros. The next `write` goes after the last byte that was written.

        Raises:
            UsageError: the place is in an earlier unit.
            ResourceError: as `write`.
        """
        self._refuse_allotted()
        begin, _ = self._unit
        if offset < begin:
            raise UsageError(f"{self.target}: bytes before {begin} belong to complete units; offset {offset} is one")
        if 0 <= offset - self.offset <= _GAP:
            self.write(bytes(offset - self.offset))
            self.write(data)
            return
        view = memoryview(data).cast("B")
        with writing(self._named, f"{len(view):,} bytes at offset {offset:,}"):
            self._file.seek(offset)
            write_all(self._file, view)
            self.offset = max(self.offset, offset + len(view))
            self._file.seek(self.offset)
        self._scattered = True

    def unit_done(self, note: str = "") -> None:
        """Record that a unit is complete, so that a later run can resume after it.

        One that was written out of order is read once more for its checksum.

        Raises:
            ChangedSourceError: a source was changed, so that the unit may have old or new content.
        """
        self._refuse_allotted()
        if self._reading:
            self._reading.check_sources(hashes=False)
        if self._scattered:
            begin, before = self._unit
            with writing(self._named, "its checksum"):
                self._file.seek(begin)
                self._crc = _checksum(self._file, self.offset - begin, before)
        with writing(self._named, "its journal"):
            self._journal.add(Unit(self.offset, self._crc, note))
        self._unit, self._scattered = (self.offset, self._crc), False

    def allot(self, end: int) -> Region:
        """Give the next unit its place, from the end of what was written or allotted up to `end`.

        Its bytes are written with `put`, in any order and from any thread; what no piece covers becomes zeros. Several
        units may be under way; `complete` records them in their order. Meanwhile nothing else can be written.

        Raises:
            UsageError: `end` is before the place's beginning.
        """
        if end < self.offset:
            raise UsageError(f"{self.target}: a unit from {self.offset} cannot end at {end}")
        left = {at: piece for at, piece in self._left.items() if self.offset <= at < end}
        region = Region(self.offset, end, left=left)
        self._regions.append(region)
        self.offset = end
        return region

    def put(self, region: Region, offset: int, data: bytes | bytearray | memoryview, crc: int = 0) -> int:
        """Write bytes of a region at their place in the file; several threads may do so.

        Returns:
            Their CRC-32, continued from `crc`, for `put_done`.

        Raises:
            UsageError: the place is outside the region.
            ResourceError: as `write`.
        """
        view = memoryview(data).cast("B")
        if offset < region.begin or offset + len(view) > region.end:
            raise UsageError(f"{self.target}: bytes {offset} to {offset + len(view)} are outside their unit's place")
        with writing(self._named, f"{len(view):,} bytes at offset {offset:,}"):
            self._write_there(offset, view)
        return zlib.crc32(view, crc)

    def put_done(self, region: Region, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Record pieces that are complete, each its offset, its bytes and its CRC-32; several threads may do so.

        Raises:
            ChangedSourceError: a source was changed, so that they may have old or new content.
        """
        made = [Piece(*piece) for piece in pieces]
        if self._reading:
            self._reading.check_sources(hashes=False)
        with writing(self._named, "its journal"):
            self._journal.add_pieces(made)
        region.pieces.update((piece.at, piece) for piece in made)
        for piece in made:
            start_writing(self._file.fileno(), piece.at, piece.bytes)

    def complete(self, region: Region, note: str = "") -> None:
        """Record that a region is complete, in the order in which they were allotted; as `unit_done`.

        Raises:
            UsageError: another region comes first.
            ChangedSourceError: as `unit_done`.
        """
        if not self._regions or self._regions[0] is not region:
            raise UsageError(f"{self.target}: units are completed in the order in which they got their places")
        position, crc = region.begin, self._crc
        for at in sorted(region.pieces):
            crc, piece = self._zeros(position, at, crc), region.pieces[at]
            crc, position = combined(crc, piece.crc, piece.bytes), at + piece.bytes
        self._crc = self._zeros(position, region.end, crc)
        if self._reading:
            self._reading.check_sources(hashes=False)
        with writing(self._named, "its journal"):
            self._journal.add(Unit(region.end, self._crc, note))
            self._file.seek(region.end)
        self._regions.popleft()
        self._unit = region.end, self._crc

    def _zeros(self, begin: int, end: int, crc: int) -> int:
        """Write the zeros between two pieces; return the checksum with them."""
        while begin < end:
            zeros = bytes(min(end - begin, _CHUNK))
            with writing(self._named, f"{len(zeros):,} bytes at offset {begin:,}"):
                self._write_there(begin, memoryview(zeros))
            begin, crc = begin + len(zeros), zlib.crc32(zeros, crc)
        if begin > end:
            raise UsageError(f"{self.target}: two pieces overlap at {end}")
        return crc

    def _write_there(self, offset: int, view: memoryview) -> None:
        with contextlib.nullcontext() if hasattr(os, "pwrite") else self._seeking:
            write_there(self._file.fileno(), offset, view)

    def _refuse_allotted(self) -> None:
        if self._regions:
            raise UsageError(f"{self.target}: {len(self._regions)} units have their places and are not complete")

    def overwrite(self, offset: int, data: bytes) -> None:
        """Overwrite earlier bytes, e.g. a header reserved as zeros; only before `commit`.

        The checksums no longer match afterwards, so that an interrupted run starts anew.
        """
        if offset + len(data) > self.offset:
            raise UsageError(f"{self.target}: only bytes below {self.offset} can be overwritten")
        with writing(self._named, f"{len(data):,} bytes at offset {offset:,}"):
            self._file.seek(offset)
            write_all(self._file, memoryview(data))
            self._file.seek(self.offset)

    def reserve(self, nbytes: int) -> None:
        """Raise if a file of `nbytes` bytes in total does not fit on the disk.

        Raises:
            ResourceError: it does not.
        """
        with writing(self._named):
            there = max(self.offset, 512 * getattr(os.fstat(self._file.fileno()), "st_blocks", 0))
        require_space(self.target.parent, nbytes - there, self._named)

    def preallocate(self, nbytes: int) -> None:
        """Have the system allot the disk's blocks for `nbytes` bytes in total, where it can; nothing is written.

        Raises:
            ResourceError: the disk is full.
        """
        self._planned = nbytes
        with writing(self._named, f"{nbytes:,} bytes"):
            self._longer |= allocate(self._file.fileno(), nbytes)

    def share(self) -> SharedFile | None:
        """Return how other processes find the file, to write pieces of regions that were allotted (`put_done`).

        A file is shared once, by a token behind the bytes for which `preallocate` was called; None without that. A
        process that was lost may write on for a while: what it writes are the same bytes at the same place, and only
        in this file, whatever takes its name later.

        Raises:
            ResourceError: as `write`.
        """
        if self._shared is None and self._planned:
            with writing(self._named):
                end = max(self.offset, self._planned)
                self._shared = SharedFile.of(self._partial, self._named, self._file.fileno(), end)
            self._longer = True
        return self._shared

    def commit(self, manifest: bytes | None = None) -> None:
        """Sync, and replace the target by the file, with its manifest (a JSON object) if there is one.

        Raises:
            ChangedSourceError: what the verb reads was changed meanwhile; the target is untouched.
            ResourceError: the disk is full, or a step was refused; the target is the old or the new one, whole.
        """
        if self._work:
            self._work.check_sources()
            self._work.admit(self.target)  # something else may have been put there meanwhile
        self._refuse_allotted()
        with writing(self._named):
            if self._longer:  # preallocated for more than was written, or shared
                self._file.truncate(self.offset)
            os.fsync(self._file.fileno())
            if os.name == "nt":  # an open file cannot be renamed there
                self._file.close()
            if manifest is None:
                os.replace(self._partial, self.target)
                sync_directory(self.target.parent)
            else:
                replace_pair(self._partial, self.target, manifest)
        self._journal.drop()
        self._let_go()

    def close(self, keep: bool = True) -> None:
        """Close the file; without `commit` the target is unchanged.

        Complete units are kept for a later run, unless `keep` is False.
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

    def _begin(self, given: Path) -> None:
        """Resume or delete the files of an earlier run; called under the lock."""
        self._file: Any = contextlib.nullcontext()
        if self._lock is not None:
            recover(self.target)
            _refuse_what_is_no_file(self.target, given)
            if self._work:
                self._work.admit(self.target)
        if not _is_regular(self._partial):
            clear(self._partial)
        left = self._partial.exists() and self._partial.stat().st_size > 0
        units, pieces = self._journal.read() if left else ([], [])
        if not (units or pieces):
            clear(self._partial)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._file = open(os.open(self._partial, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115
        whole = self._intact(units)
        if len(whole) == len(units):
            self._left = self._intact_pieces(pieces)
        if self._reading and self._journal.resumable and left and not (whole or self._left):
            self._reading.restart()
        self._resume(whole)

    def _vouched(self, fingerprint: Fingerprint | None) -> Fingerprint | None:
        """Return the fingerprint; raise if the sources changed before the hashes that it includes were computed."""
        reading = self._reading
        if reading is None or not callable(fingerprint):
            return fingerprint

        def vouched() -> bytes:
            known = fingerprint()
            reading.check_sources(hashes=False)
            return known

        return vouched

    def _resume(self, units: list[Unit]) -> None:
        if units:
            self.offset, self._crc = self._unit = units[-1].end, units[-1].crc
        self._file.truncate(max([self.offset, *(piece.at + piece.bytes for piece in self._left.values())]))
        self._file.seek(self.offset)
        self._journal.start(units, self._left.values())

    def _intact(self, units: list[Unit]) -> list[Unit]:
        """Return the units up to the first that is missing in the partial file."""
        size, position, crc = os.fstat(self._file.fileno()).st_size, 0, 0
        self._file.seek(0)
        for index, unit in enumerate(units):
            crc = _checksum(self._file, unit.end - position, crc)
            position = unit.end
            if unit.end > size or crc != unit.crc:
                return units[:index]
        return units

    def _intact_pieces(self, pieces: Iterable[Piece]) -> dict[int, Piece]:
        """Return the pieces whose bytes are in the partial file, by their offsets."""
        intact: dict[int, Piece] = {}
        size = os.fstat(self._file.fileno()).st_size
        for piece in pieces:
            if piece.at + piece.bytes <= size:
                self._file.seek(piece.at)
                if _checksum(self._file, piece.bytes, 0) == piece.crc:
                    intact[piece.at] = piece
        return intact

    def _let_go(self) -> None:
        self._closed = True
        self._journal.close()
        if hasattr(self._file, "close"):
            self._file.close()
        if self._lock is not None:
            self._lock.release()


def write_atomic(target: Path, data: bytes, *, named: Path | None = None) -> None:
    """Replace a small file as a whole; `named` and errors as for `AtomicFile`."""
    with AtomicFile(target, named=named) as file:
        file.write(data)
        file.commit()


class AtomicDirectory:
    """A directory that replaces its target when it is complete.

    Files are written in `path`, a hidden directory beside the target; with a fingerprint for `file`, an interrupted run
    is resumed there.

    Attributes:
        target: the directory that `commit` replaces; links are followed.
        path: the directory to write in.
        owned: patterns of file names that may be replaced, besides those that a manifest of edgekit's names.

    Raises:
        ResourceError: no permission, no parent directory, a read-only or full disk.
        LockedError: another writer has the same target.
        UsageError: the target is a file, or contains files that are not part of an artifact; they are never deleted.
    """

    def __init__(self, target: Path, *, owned: tuple[str, ...] = ARTIFACT_FILES) -> None:
        self.target = Path(os.path.realpath(target))
        self.owned = owned
        self.path = hidden(self.target, "partial")
        self._work = guard.current()
        self._files: list[AtomicFile] = []
        self._closed = False
        with writing(self.target):
            _refuse_long_name(self.target)
            if self._work:
                guard.refuse_harm(self.target, self._work.reads)
            self._lock = Lock.beside(self.target)
            try:
                self._begin()
            except BaseException:
                self._let_go()
                raise

    def file(self, name: str, *, fingerprint: Fingerprint | None = None, beside: Iterable[str] = ()) -> AtomicFile:
        """Begin, or resume, a file of the directory; commit it before the directory.

        Args:
            name: of the file.
            fingerprint: as for `AtomicFile`.
            beside: names of files that are opened after it, and may be resumed too.
        """
        with writing(self.target):
            self._sweep(but=(name, *beside))
        file = AtomicFile(self.path / name, fingerprint=fingerprint, named=self.target / name, lock=False)
        self._files.append(file)
        return file

    def write(self, name: str, data: bytes) -> None:
        """Write a small file of the directory, or of a directory in it (``name/file``)."""
        (self.path / name).parent.mkdir(exist_ok=True)
        with writing(self.target / name):
            write_small(self.path / name, data)

    def reserve(self, nbytes: int) -> None:
        """Raise `ResourceError` if `nbytes` more bytes do not fit on the disk."""
        require_space(self.path, nbytes, self.target)

    def commit(self) -> None:
        """Sync, and replace the target by the directory.

        Raises:
            ChangedSourceError: what the verb reads was changed meanwhile; the target is untouched.
            ResourceError: the disk is full, or a step was refused; the target is the old or the new one, whole.
        """
        if self._work:
            self._work.check_sources()
        with writing(self.target):
            self._sweep()
            self._list_files()
            sync_tree(self.path)
            self._refuse_foreign()  # something may have been put there during the sync
            replace_directory(self.path, self.target)
        self._let_go()

    def close(self, keep: bool = True) -> None:
        """Close the directory; without `commit` the target is unchanged.

        Files that can be resumed are kept for a later run, unless `keep` is False.
        """
        if self._closed:
            return
        for file in self._files:
            file.close(keep)
        with contextlib.suppress(OSError):
            if not any(entry.name.endswith(_JOURNAL) for entry in self.path.iterdir()):
                clear(self.path)
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        """Delete the files of an earlier run, except those that can be resumed; called under the lock."""
        recover(self.target)
        self._refuse_foreign()
        if self._work:
            self._work.admit(self.target)
        clear(hidden(self.target, "partial.json"))  # left by a file that had this name
        if self.path.is_symlink() or not self.path.is_dir():
            clear(self.path)
            self.path.mkdir()
        journals = {entry.name for entry in self.path.iterdir() if entry.name.endswith(_JOURNAL)}
        retained = journals | {name.removesuffix(".json") for name in journals}
        _clear_all(entry for entry in self.path.iterdir() if entry.name not in retained)

    def _sweep(self, but: Collection[str] = ()) -> None:
        """Remove all resumable files except these and open ones: the others are of another format or run."""
        names = [*but, *(file.target.name for file in self._files)] if but else []
        retained = {hidden(Path(name), what).name for name in names for what in ("partial", "partial.json")}
        _clear_all(
            entry
            for entry in self.path.iterdir()
            if entry.name.startswith(".") and entry.name.endswith((".partial", _JOURNAL)) and entry.name not in retained
        )

    def _list_files(self) -> None:
        """Add the directory's files to the manifest, so that a later run can replace them."""
        manifest = self.path / pairs.INSIDE
        if manifest.is_file():
            names = [f.relative_to(self.path).as_posix() for f in entries_below(self.path) if f.is_file()]
            write_small(manifest, pairs.dumped({**json.loads(manifest.read_bytes()), "files": names}))

    def _owns(self, entry: Path, listed: Container[str]) -> bool:
        """Return whether a file of the target, or a directory with all its files, belongs to an artifact."""
        if entry.is_file():
            return self._owns_file(entry, listed)
        if entry.is_symlink() or not entry.is_dir():
            return False
        inside = entries_below(entry)
        return bool(inside) and all(each.is_file() and self._owns_file(each, listed) for each in inside)

    def _owns_file(self, file: Path, listed: Container[str]) -> bool:
        name = file.relative_to(self.target).as_posix()
        patterns = [pattern for pattern in self.owned if pattern.count("/") == name.count("/")]  # * matches / too
        return name in listed or guard.matches(name, patterns)

    def _refuse_foreign(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self.target.is_dir():
            raise UsageError(f"{self.target} is a file; name a directory to write")
        listed = _listed(self.target)
        for entry in self.target.iterdir():
            if not self._owns(entry, listed):
                raise UsageError(
                    f"{self.target} holds {entry.name}, which is not part of an artifact; "
                    "move it away, or choose another target"
                )

    def _let_go(self) -> None:
        self._closed = True
        self._lock.release()


def _listed(directory: Path) -> frozenset[str]:
    """Return the files that edgekit wrote in a directory, from its manifest."""
    try:
        content = read_bytes(directory, pairs.INSIDE, pairs.LIMIT)
        record = None if content is None else strict_json(content, directory / pairs.INSIDE, "the file")
    except ValueError:
        return frozenset()
    names = record.get("files") if isinstance(record, dict) else None
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def _clear_all(entries: Iterable[Path]) -> None:
    for entry in list(entries):
        clear(entry)


def _refuse_what_is_no_file(target: Path, given: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{given} is a directory; name a file to write")
    if target.exists() and not target.is_file():  # a rename would replace a device by a file
        raise UsageError(f"{given} is a device or a pipe, not a regular file; name a file to write")


def _refuse_long_name(longest: Path) -> None:
    """Raise, before any work, if the target's or its manifest's name is too long for the file system."""
    if len(os.fsencode(longest.name)) > NAME_LIMIT:
        raise ResourceError(
            f"cannot write {longest.name}: its name has {len(os.fsencode(longest.name))} bytes, {NAME_LIMIT} are "
            "allowed; choose a shorter name"
        )


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _checksum(file: Any, length: int, crc: int) -> int:
    """Return the CRC-32 continued over the next `length` bytes."""
    while length > 0 and (chunk := file.read(min(length, _CHUNK))):
        crc, length = zlib.crc32(chunk, crc), length - len(chunk)
    return crc


__all__ = [
    "ARTIFACT_FILES",
    "AtomicDirectory",
    "AtomicFile",
    "Fingerprint",
    "Region",
    "require_space",
    "write_atomic",
    "writing",
]
