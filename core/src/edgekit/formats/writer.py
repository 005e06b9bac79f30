"""The base of a format's writer: the tensors of a plan, in its order, into one file that can be resumed.

`PlannedFile` is for a format whose artifact is one file, `PlannedDirectory` for one whose artifact is a directory with
the tensors in one of its files. What they share is `PlannedWriter`: the next tensor must be the plan's next, `commit`
needs all of them, and an interrupted run goes on after its last complete tensor if it would write the same.

A large tensor comes in rows, encoded as they are read: a writer that says where its parts lie (`place`) puts each of
them there, so that a stack of experts is never in memory as a whole. Its rows may also come in any order, from several
threads (`PlannedWriter.allot`).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import attrs
import numpy as np

from edgekit.encoding._codecs import put_rows
from edgekit.errors import UsageError
from edgekit.files.atomic import ARTIFACT_FILES, AtomicDirectory, AtomicFile, Region
from edgekit.formats._parts import Together, rows_together
from edgekit.formats.safetensors import Part, to_bytes
from edgekit.manifest import Manifest
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Plan
from edgekit.reference import Parts
from edgekit.tensor import QuantizedTensor
from edgekit.typing import Array

#: Part of every fingerprint: a run never resumes one of an edgekit version with another order of units.
_UNITS = b"edgekit.formats.writer 1\n"


@attrs.frozen
class Places:
    """Where the parts of a tensor lie in the file.

    Attributes:
        offsets: of the first byte of each part, by the part's name.
        end: where the next tensor may begin; bytes that no part covers are zeros.
        note: to find in `PlannedWriter.notes` when the run is resumed.
    """

    offsets: Mapping[str, int]
    end: int
    note: str = ""

    @classmethod
    def in_order(cls, parts: Iterable[Part], start: int, alignment: int = 1) -> Self:
        """Parts one after the other from `start` on, each at a multiple of the alignment."""
        offsets, end = {}, start
        for part in parts:
            offsets[part.name] = begin = -(-end // alignment) * alignment
            end = begin + part.nbytes
        return cls(offsets, end)


@attrs.frozen
class RowPlaces:
    """Where the rows of a tensor lie in the file; pickled for workers of other processes.

    Attributes:
        name: the tensor's, for messages.
        rows: how many it has.
        offsets: of the first byte of each part, by the part's name.
        parts: types and shapes of its parts, by name.
        stored: returns a part of some rows, by its name, as the file stores it.
        together: which of its rows share bytes.
    """

    name: str
    rows: int
    offsets: Mapping[str, int]
    parts: Mapping[str, Part]
    stored: Callable[[str, Array], Array]
    together: Together = Together()  # noqa: RUF009 - frozen

    def put(
        self, start: int, stop: int, pieces: Iterable[tuple[int, Parts]], write: Callable[[int, memoryview, int], int]
    ) -> list[tuple[int, int, int]]:
        """Write rows ``start:stop``, which come in order as pairs of the first row's number and the encoded parts.

        Args:
            start: number of the first row, which shares no byte with the one before.
            stop: of the one after the last.
            pieces: the rows.
            write: writes bytes at an offset, and returns their CRC-32, continued from the one that it is given.

        Returns:
            What was written: offset, bytes and CRC-32 of each piece of the file.

        Raises:
            UsageError: the parts are not those for which the place was made.
        """
        ranges = self.ranges(start, stop)
        crcs, ends = dict.fromkeys(ranges, 0), {key: at for key, (at, _) in ranges.items()}
        for first, parts in pieces:
            for key, array in parts.items() if first == start else _by_rows(parts):
                self._refuse_other(key, array)
                if key in ranges and array.nbytes:
                    data = memoryview(to_bytes(self.stored(key, array))).cast("B")
                    crcs[key] = write(ends[key], data, crcs[key])
                    ends[key] += array.nbytes
        if ends != {key: at + nbytes for key, (at, nbytes) in ranges.items()}:
            raise UsageError(f"tensor {self.name!r}: rows {start} to {stop} have other sizes than planned")
        return [(at, nbytes, crcs[key]) for key, (at, nbytes) in ranges.items() if nbytes]

    def ranges(self, start: int, stop: int) -> dict[str, tuple[int, int]]:
        """First byte and number of bytes of these rows, by part; a part without rows is written with the first ones."""
        ranges = {}
        for key, begin in self.offsets.items():
            part = self.parts[key]
            if stop - start == self.rows:
                ranges[key] = begin, part.nbytes
            elif part.shape:
                first, nbytes = self.together.span(key, start, stop, self.rows, part.nbytes)
                ranges[key] = begin + first, nbytes
            elif not start:
                ranges[key] = begin, part.nbytes
        return ranges

    def _refuse_other(self, key: str, array: Array) -> None:
        part = self.parts.get(key)
        if part is None or part.dtype != _type_name(array.dtype):
            planned = ", ".join(f"{part.name} ({part.dtype})" for part in self.parts.values())
            raise UsageError(
                f"tensor {self.name!r}: its encoder gives {key} ({array.dtype.name}), planned are {planned}; name "
                "another backend"
            )


@attrs.frozen(eq=False)
class Allotted:
    """The place of a tensor whose rows are written in any order, by several threads; made by `PlannedWriter.allot`.

    Attributes:
        file: where it lies.
        region: its place there.
        places: of its parts.
        by_rows: of its rows.
    """

    file: AtomicFile
    region: Region
    places: Places
    by_rows: RowPlaces

    def resumed(self, start: int, stop: int) -> bool:
        """Whether these rows are complete since an interrupted run, which has written exactly them in one go."""
        return self.region.take(self.by_rows.ranges(start, stop).values())

    def put(self, start: int, stop: int, pieces: Iterable[tuple[int, Parts]]) -> None:
        """Write rows ``start:stop``, which come in order as pairs of the first row's number and the encoded parts.

        Raises:
            UsageError: the parts are not those for which the place was made.
            ChangedSourceError: a source was changed meanwhile.
            ResourceError: the disk is full; the target stays as it was.
        """
        self.put_done(self.by_rows.put(start, stop, pieces, partial(self.file.put, self.region)))

    def put_done(self, written: Iterable[tuple[int, int, int]]) -> None:
        """Record what `RowPlaces.put` has written, here or elsewhere; raises as `put`."""
        self.file.put_done(self.region, written)


@cache
def _type_name(dtype: np.dtype[Any]) -> str:
    """Return numpy's name of a type, which it puts together anew each time it is asked for."""
    return dtype.name


def _as_encoded(key: str, array: Array) -> Array:
    return array


def _by_rows(parts: Parts) -> Iterable[tuple[str, Array]]:
    return ((key, array) for key, array in parts.items() if array.ndim)


@attrs.define
class _UnderWay:
    """The tensor whose rows are being written.

    Attributes:
        assignment: the plan's line for it.
        parts: of the whole tensor, by name.
        places: where they lie; None where the writer takes whole tensors alone.
        collected: the rows so far, for such a writer.
        rows: how many were written.
    """

    assignment: Assignment
    parts: Mapping[str, Part]
    places: Places | None
    collected: Parts = attrs.field(factory=dict)
    rows: int = 0


class PlannedWriter(ABC):
    """Writes the tensors of a plan in its order; derive from `PlannedFile` or `PlannedDirectory`.

    The bytes before the first tensor are written, or found from an interrupted run, when the writer is made; each
    tensor is one unit of the resumable file. A derived class says in `place` where the parts of a tensor lie; or it
    writes whole tensors itself, in `append`, and then holds each of them in memory.

    Args:
        path: the artifact to write.
        plan: which tensors come, in which order and precision.
        manifest: of the artifact; part of the fingerprint, so that other sources or another recipe begin anew.
        header: the bytes before the first tensor.
        nbytes: bytes of the whole file, the header included; checked against the disk before anything is written.
        identity: what distinguishes the file besides the manifest, for the fingerprint; the header by default.
        sizes: bytes of each tensor's parts in the plan's order, where `write` is to check them.

    Attributes:
        path: as given.
        plan: as given.
        manifest: as given. Reading its JSON waits for the hashes of the sources; leave it for `commit`.
        file: where tensors are written; its ``offset`` is where the next one may begin.
        remarks: what turned out while it was written and the user should know, a sentence by kind.

    Raises:
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes it.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        manifest: Manifest,
        *,
        header: bytes = b"",
        nbytes: int,
        identity: bytes | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.path, self.plan, self.manifest = path, plan, manifest
        self._identity = header if identity is None else identity
        self._sizes = sizes
        self._under_way: _UnderWay | None = None
        self._allotted = 0
        self.remarks: dict[str, str] = {}
        self.file = self._open(self._fingerprint)  # called later: the sources are hashed while tensors are written
        try:
            self.file.reserve(nbytes)
            self._preallocate(nbytes)
            if not self.file.done:
                self.file.write(header)
        except BaseException:
            self.close(keep=True)
            raise

    @property
    def done(self) -> int:
        """Tensors that are complete, those of an interrupted run included."""
        return self.file.done

    @property
    def placed(self) -> int:
        """Tensors that are complete, or under way in a place that `allot` gave them; `place` is for the next one."""
        return self.done + self._allotted

    @property
    def in_any_order(self) -> bool:
        """Whether `allot` gives tensors their place: whether the class has `place`."""
        return type(self).place is not PlannedWriter.place

    @property
    def notes(self) -> list[str]:
        """The note of each complete tensor, those of an interrupted run included."""
        return self.file.notes

    def allot(self, name: str, precision: Precision, parts: Mapping[str, Part]) -> Allotted:
        """Give the plan's next tensor its place, so that its rows can be written in any order, by several threads.

        Several tensors may be under way; `complete` records them in the plan's order.

        Args:
            name: of the tensor.
            precision: of the tensor.
            parts: types and shapes of its parts, as `place` takes them.

        Raises:
            UsageError: it is not the one that the plan has next, or has other sizes than planned.
        """
        count = self._expected(name, precision, parts)
        self.file = self.file_of(self.placed)
        assignment = self.plan.assignments[self.placed]
        places = self.place(parts, assignment)
        if places is None:
            raise UsageError(f"{self.path}: tensor {name!r} is written whole, in `append`")
        region = self.file.allot(places.end)
        self._allotted += 1
        together = rows_together(precision, assignment.shape) if precision.packed_rows else None
        rows = RowPlaces(name, count, places.offsets, parts, self.storing(assignment), together or Together())
        return Allotted(self.file, region, places, rows)

    def complete(self, allotted: Allotted) -> None:
        """Record that every row of a tensor was written; in the plan's order.

        Raises:
            UsageError: another tensor comes first.
            ChangedSourceError: a source was changed meanwhile; the target stays as it was.
        """
        allotted.file.complete(allotted.region, allotted.places.note)
        self._allotted -= 1

    def file_of(self, index: int) -> AtomicFile:
        """Return the file of the plan's tensor `index`, for formats with several; called before `place`."""
        return self.file

    def write(self, tensor: QuantizedTensor) -> None:
        """Append the plan's next tensor.

        Raises:
            UsageError: it is not the one that the plan has next.
            ResourceError: the disk is full; the target stays as it was.
        """
        self.write_rows(tensor, 0)

    def write_rows(self, rows: QuantizedTensor, first: int) -> None:
        """Write rows of the plan's next tensor, in their order; the tensor is complete with its last row.

        Args:
            rows: under the name and in the precision of the tensor, [count, cols]; or the whole tensor.
            first: number of the first of them; all leading dimensions count as rows.

        Raises:
            UsageError: they are not of the tensor that the plan has next, or not the next rows of it.
            ResourceError: the disk is full; the target stays as it was.
        """
        count = math.prod(self._next(rows.name).shape[:-1])
        self._expected(rows.name, rows.precision, _whole(rows, count))
        self.file = self.file_of(self.placed)
        under_way = self._under_way or self._begin(rows, count)
        if first != under_way.rows or first + rows.rows > count:
            raise UsageError(
                f"{self.path}: rows {first} to {first + rows.rows} of tensor {rows.name!r}, but row {under_way.rows} "
                f"of {count} is next; write them in order"
            )
        self._under_way = under_way
        if under_way.places is None:
            under_way.collected = put_rows(under_way.collected, dict(rows.parts), first, rows.rows, count)
        else:
            self._put(rows, first, count, under_way)
        under_way.rows += rows.rows
        if under_way.rows == count:
            note = self._complete(under_way, rows)
            self._under_way = None
            self.file.unit_done(note)

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places | None:
        """Return where the plan's next tensor lies in `file`; None to get it whole, in `append`.

        Args:
            parts: types and shapes of the tensor's parts, in the precision's order. All but 0-d ones have a row of
                their own for each row of the tensor, or come in one piece.
            assignment: the plan's line for it; its shape is the stored one.

        Raises:
            UsageError: the parts are not those that the format stores.
        """
        return None

    def stored(self, key: str, array: Array, assignment: Assignment) -> Array:
        """Return a part of some rows as the file stores it, in as many bytes; the part itself by default.

        Several threads call it at the same time, for rows in any order.

        Args:
            key: name of the part.
            array: of the part of some rows, as encoded.
            assignment: the plan's line for the tensor.
        """
        return array

    def storing(self, assignment: Assignment) -> Callable[[str, Array], Array]:
        """Return `stored` for one tensor, as a function of the part's name and array.

        A class that has a `stored` of its own may return a function that can be pickled: workers of other processes
        then write as well, and need not send back what they encoded.
        """
        return partial(self.stored, assignment=assignment) if self._has_stored else _as_encoded

    @property
    def stores_elsewhere(self) -> bool:
        """Whether `storing` returns what can be pickled."""
        return not self._has_stored or type(self).storing is not PlannedWriter.storing

    @property
    def _has_stored(self) -> bool:
        return type(self).stored is not PlannedWriter.stored

    def append(self, tensor: QuantizedTensor, assignment: Assignment) -> str | None:
        """Write one whole tensor to `file`, padding included; for a class without `place`.

        Args:
            tensor: the plan's next.
            assignment: the plan's line for it; its shape is the stored one.

        Returns:
            A note to find in `notes` when the run is resumed, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `place` nor `append`; write one of them")

    def finish(self) -> None:  # noqa: B027 - most files end with their last tensor
        """Write what follows the last tensor, or fill in the header; nothing by default."""

    @abstractmethod
    def commit(self) -> None:
        """Check that every tensor came, sync, and put the artifact in its place.

        Raises:
            UsageError: tensors are missing.
            ChangedSourceError: the source was changed meanwhile; the target stays as it was.
            ResourceError: the disk is full; the target is the old or the new one, whole.
        """

    @abstractmethod
    def close(self, keep: bool = False) -> None:
        """Close the files; without `commit` the target is unchanged, and `keep` keeps complete tensors for a resume."""

    @abstractmethod
    def _open(self, fingerprint: Callable[[], bytes]) -> AtomicFile:
        """Begin, or resume, the file of the tensors."""

    def _next(self, name: str) -> Assignment:
        """Return the plan's line for the next tensor; raise if there is none."""
        if self.placed >= len(self.plan):
            raise UsageError(f"{self.path}: tensor {name!r} is one more than the plan's {len(self.plan)}")
        return self.plan.assignments[self.placed]

    def _expected(self, name: str, precision: Precision, parts: Mapping[str, Part]) -> int:
        """Return how many rows the plan's next tensor has, if this may be it."""
        planned = self._next(name)
        expected: tuple[str | int, ...] = (planned.name, planned.precision.name)
        given: tuple[str | int, ...] = (name, precision.name)
        what = "(name, precision)"
        if self._sizes is not None:
            expected = (*expected, self._sizes[self.placed])
            given = (*given, sum(part.nbytes for part in parts.values()))
            what = "(name, precision, bytes)"
        if given != expected:
            raise UsageError(
                f"{self.path}: {what} of the plan's next tensor are {expected}, not {given}; write in the plan's order"
            )
        return math.prod(planned.shape[:-1])

    def _preallocate(self, nbytes: int) -> None:
        """Have the system allot the disk's blocks; a class with several files does so for each."""
        self.file.preallocate(nbytes)

    def _begin(self, rows: QuantizedTensor, count: int) -> _UnderWay:
        assignment, parts = self.plan.assignments[self.done], _whole(rows, count)
        return _UnderWay(assignment, parts, self.place(parts, assignment))

    def _put(self, rows: QuantizedTensor, first: int, count: int, under_way: _UnderWay) -> None:
        assert under_way.places is not None
        for key, begin in under_way.places.offsets.items():
            array = rows.parts[key]
            if array.ndim or not first:  # one value for the whole tensor is written once
                data = to_bytes(self.stored(key, array, under_way.assignment))
                self.file.write_at(begin + first * (under_way.parts[key].nbytes // count), data)

    def _complete(self, under_way: _UnderWay, last: QuantizedTensor) -> str:
        """Write what is left of a tensor; return its note."""
        if under_way.places is not None:
            self.file.write(bytes(under_way.places.end - self.file.offset))
            return under_way.places.note
        assignment = under_way.assignment
        whole = attrs.evolve(last, parts=under_way.collected, shape=assignment.shape)
        return self.append(whole, assignment) or ""

    def _refuse_missing(self) -> None:
        if self._under_way is not None or self._allotted or self.done != len(self.plan):
            raise UsageError(
                f"{self.path}: only {self.done} of {len(self.plan)} tensors were written; write them all before commit"
            )

    def _fingerprint(self) -> bytes:
        return hashlib.sha256(_UNITS + self._identity + self._manifest_json()).digest()

    def _manifest_json(self) -> bytes:
        return self.manifest.to_json().encode()


def _whole(rows: QuantizedTensor, count: int) -> dict[str, Part]:
    """Types and shapes of the parts of the tensor of `count` rows that these rows are of."""
    shapes = {
        key: part.shape if rows.rows == count or not part.ndim else (count, *part.shape[1:])
        for key, part in rows.parts.items()
    }
    return {key: Part(key, part.dtype.name, shapes[key]) for key, part in rows.parts.items()}


class PlannedFile(PlannedWriter):
    """Writes one file, its manifest beside it; arguments and errors as for `PlannedWriter`.

    Example:
        >>> class RawWriter(PlannedFile):
        ...     def __init__(self, path, layout, plan, manifest):
        ...         nbytes = sum(math.ceil(a.size * a.precision.bits_per_weight / 8) for a in plan)
        ...         super().__init__(path, plan, manifest, header=b"RAW1", nbytes=4 + nbytes)
        ...
        ...     def place(self, parts, assignment):
        ...         return Places.in_order(parts.values(), self.file.offset)
    """

    def commit(self) -> None:
        """Check that every tensor came, sync, and put the file in its place; raises as `PlannedWriter.commit`."""
        self._refuse_missing()
        self.finish()
        self.file.commit(self._manifest_json())

    def close(self, keep: bool = False) -> None:
        """Close the files; without `commit` the target is unchanged, and `keep` keeps complete tensors for a resume."""
        self.file.close(keep)

    def _open(self, fingerprint: Callable[[], bytes]) -> AtomicFile:
        return AtomicFile(self.path, fingerprint=fingerprint, manifest=True)


class PlannedDirectory(PlannedWriter):
    """Writes a directory with the tensors in one file; arguments and errors as for `PlannedWriter`.

    Attributes:
        data: name of the file that holds the tensors; a class states it.
        owned: patterns of the names that a directory of this format has, and that may be replaced in it.
        directory: the directory that replaces the target at `commit`.
    """

    data: ClassVar[str]
    owned: ClassVar[tuple[str, ...]] = ARTIFACT_FILES

    directory: AtomicDirectory

    @abstractmethod
    def small_files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of every other file of the directory, the manifest included; called after `finish`."""

    def commit(self) -> None:
        """Check that every tensor came, write the other files, and swap the directory in.

        Raises as `PlannedWriter.commit`.
        """
        self._refuse_missing()
        self.finish()
        self.file.commit()
        for name, content in self.small_files():
            self.directory.write(name, content)
        self.directory.commit()

    def close(self, keep: bool = False) -> None:
        """Close the files; without `commit` the target is unchanged, and `keep` keeps complete tensors for a resume."""
        self.directory.close(keep)

    def _open(self, fingerprint: Callable[[], bytes]) -> AtomicFile:
        self.directory = AtomicDirectory(self.path, owned=self.owned)
        try:
            return self.directory.file(self.data, fingerprint=fingerprint)
        except BaseException:
            self.directory.close()
            raise


__all__ = ["Allotted", "Places", "PlannedDirectory", "PlannedFile", "PlannedWriter", "RowPlaces"]
