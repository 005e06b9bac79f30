"""Tensors through an executor, in order: while one is written, the next are read and encoded.

A tensor is cut into chunks of rows, which are written as they come: no tensor is in memory as a whole. Chunks of
several tensors are under way at a time, so that small tensors keep every worker busy too; a limit on their total
elements bounds the memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Protocol

import attrs
import numpy as np

from edgekit.encoding._codecs import REFERENCE, Codec, codec, decode, put_rows
from edgekit.encoding._importance import expert_row, of_role
from edgekit.errors import ResourceError
from edgekit.files.workers import cores
from edgekit.formats._parts import rows_apart
from edgekit.numerics.smallfloats import bfloat16
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Slot
from edgekit.reference import Parts
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor, widen
from edgekit.typing import F32, Array

#: Elements of a chunk on up to 16 cores: 2 MiB of float32.
_LARGEST_CHUNK = 1 << 19
#: Elements under way on any number of cores: 64 MiB of float32.
_MOST_AHEAD = 1 << 24


def limits(count: int) -> tuple[int, int]:
    """Return the elements of a chunk, and of all chunks under way: two for each of `count` cores, so that none waits.

    On more than 16 cores the chunks are smaller, so that memory does not grow with the number of cores.
    """
    chunk = min(_LARGEST_CHUNK, max(1, _MOST_AHEAD // (2 * count)))
    return chunk, min(2 * count * chunk, _MOST_AHEAD)


CHUNK, AHEAD = limits(cores())


@attrs.frozen
class Rows:
    """Rows in the source's type, to be widened or decoded by the worker that encodes them.

    Attributes:
        first: number of the first row, for messages.
        values: [rows, cols] in the source's type, or still encoded.
        dtype: the source's type if the values must be widened; else empty.
    """

    first: int
    values: Array | QuantizedTensor
    dtype: str = ""

    def for_reference(self, name: str) -> Array:
        """Return the rows in a type that the precision's reference accepts, C-contiguous."""
        if isinstance(self.values, QuantizedTensor):
            return decode(self.values)
        return np.ascontiguousarray(widen(self.values, self.dtype, name) if self.dtype else self.values)


class Afar(Protocol):
    """Rows that the worker reads for itself."""

    def read(self, codec: Codec) -> Rows:
        """Return the rows."""
        ...


class FarSource(Protocol):
    """A source that workers open for themselves; pickled."""

    def rows(self, name: str, start: int, stop: int) -> Afar:
        """Rows ``start:stop`` of a tensor, by its name in the layout."""
        ...

    def tensor(self, name: str) -> AnyTensor:
        """Return the tensor, opened here."""
        ...


class LostWorkersError(ResourceError):
    """An executor lost its workers: what is complete is kept."""


@attrs.frozen
class Piece:
    """Encoded rows of a tensor.

    Attributes:
        rows: under the tensor's name, [count, cols]; or the whole tensor, in its shape.
        first: number of the first of them.
        last: whether the tensor ends with them.
        line: the plan's line for the tensor.
    """

    rows: QuantizedTensor
    first: int
    last: bool
    line: Assignment

    @classmethod
    def whole(cls, tensor: QuantizedTensor, line: Assignment) -> Piece:
        """A tensor in one piece."""
        return cls(tensor, 0, True, line)


def together(pieces: Iterator[Piece]) -> QuantizedTensor:
    """Return the next tensor as a whole."""
    parts: Parts = {}
    for piece in pieces:
        if piece.last and not piece.first:
            return piece.rows
        shape = piece.line.shape
        parts = put_rows(parts, dict(piece.rows.parts), piece.first, piece.rows.rows, math.prod(shape[:-1]))
        if piece.last:
            return attrs.evolve(piece.rows, parts=parts, shape=shape)
    raise ValueError("the pieces end before the tensor does")


@attrs.frozen
class Encoder:
    """Encodes slots in row chunks on the pool.

    Attributes:
        pool: where chunks are encoded.
        backend: whose encoders are used; None takes the fastest exact ones.
        importance: of the columns, by role.
        keep_nonfinite: whether tensors in float may hold NaN or infinity.
        where: prefix of a tensor's name in messages.
        afar: the source that workers elsewhere open; None where rows are read here.
        workers: how many of them there are.
        lost: the error to raise for one of the pool's own; None for an error of the work.
    """

    pool: Executor
    backend: str | None
    importance: Mapping[str, F32]
    keep_nonfinite: bool
    where: str = ""
    afar: FarSource | None = None
    workers: int = 1
    lost: Callable[[Exception], Exception | None] = lambda error: None

    def encoded(self, pairs: Iterable[tuple[Slot, Assignment]]) -> Generator[QuantizedTensor, None, None]:
        """Yield the encoded tensors, in order, each as a whole."""
        pairs = list(pairs)
        with closing(self.pieces(pairs)) as pieces:
            for _ in pairs:
                yield together(pieces)

    def pieces(self, pairs: Iterable[tuple[Slot, Assignment]]) -> Generator[Piece, None, None]:
        """Yield the encoded tensors in pieces, in order."""
        under_way: deque[_Task] = deque()
        try:
            for slot, assignment in pairs:
                if isinstance(slot.tensor, EncodedTensor) and slot.tensor.precision == assignment.precision:
                    yield from self._drained(under_way, 0)  # copied unchanged: read only when it is next
                    yield from _copied(slot.tensor, assignment)
                    continue
                for task in self._submitted(slot, assignment):
                    under_way.append(task)
                    yield from self._drained(under_way, _MOST_AHEAD if self.afar else AHEAD)
            yield from self._drained(under_way, 0)
        finally:
            for task in under_way:
                with suppress(ResourceError), self.watched():  # a lost pool's futures cannot be cancelled either
                    task.future.cancel()

    def _drained(self, under_way: deque[_Task], limit: int) -> Iterator[Piece]:
        """Wait for the oldest tasks until at most `limit` elements are under way; yield what they encoded."""
        size = sum(task.size for task in under_way)
        while under_way and size > limit:
            with self.watched():
                piece = under_way[0].piece()
            size -= under_way.popleft().size
            yield piece

    def _submitted(self, slot: Slot, assignment: Assignment) -> Iterator[_Task]:
        tensor, precision = slot.tensor, assignment.precision
        resolved = self.codec_of(precision)
        importance = of_role(self.importance, assignment.role)
        job = partial(
            encode_chunk,
            codec=resolved,
            name=self.where + tensor.name,
            finite=not (self.keep_nonfinite and precision.convention == "float"),
        )
        step = chunk_rows(tensor.rows, tensor.shape[-1] if tensor.shape else 1, precision)
        for start, stop, weights in weighted(tensor.rows, step, importance if precision.rowwise else None):
            size = (stop - start) * tensor.size // tensor.rows
            task = partial(job, importance=weights)
            rows = self.afar.rows(slot.name, start, stop) if self.afar else raw_rows(tensor, resolved, start, stop)
            with self.watched():
                future = self.pool.submit(task, rows)
            yield _Task(slot, assignment, resolved.backend, start, stop, size, future)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise `lost`'s error instead of one of the pool's own."""
        try:
            yield
        except Exception as error:
            if (instead := self.lost(error)) is None:
                raise
            raise instead from error

    def name_for(self, precision: Precision) -> str:
        """Return the name of the backend that encodes that precision."""
        return self.codec_of(precision).backend

    def codec_of(self, precision: Precision) -> Codec:
        """Return what encodes that precision."""
        return codec(precision, None if precision.convention == "float" else self.backend)


def weighted(rows: int, step: int, importance: F32 | None) -> Iterator[tuple[int, int, F32 | None]]:
    """Yield the bounds of each chunk with its importance [cols]; with a row for each expert, no chunk is of two."""
    stacked = importance is not None and importance.ndim == 2
    count = len(importance) if importance is not None and stacked else 1
    for number in range(count):
        weights = expert_row(importance, number) if importance is not None and stacked else importance
        for start in range(rows * number // count, rows * (number + 1) // count, step):
            yield start, min(start + step, rows * (number + 1) // count), weights


@attrs.frozen
class _Task:
    """A chunk under way: rows `start` to `stop` of a tensor, `size` elements."""

    slot: Slot
    assignment: Assignment
    backend: str
    start: int
    stop: int
    size: int
    future: Future[Parts]

    def piece(self) -> Piece:
        """Wait for the encoded chunk."""
        rows, line = self.slot.tensor.rows, self.assignment
        count, last = self.stop - self.start, self.stop == rows
        shape = self.slot.shape if count == rows else (count, self.slot.shape[-1])
        encoded = QuantizedTensor(self.future.result(), line.precision, shape, line.name, self.backend)
        return Piece(encoded, self.start, last, line)


def _copied(tensor: EncodedTensor, line: Assignment) -> Iterator[Piece]:
    """Yield an encoded tensor as it is, in rows where it can be read so."""
    apart = tensor.sliceable and rows_apart(tensor.precision, tensor.shape)
    step = rows_of_chunk(tensor.shape[-1]) if apart else tensor.rows
    if step >= tensor.rows:
        yield Piece.whole(attrs.evolve(tensor.read(), name=line.name), line)
        return
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        parts, shape = tensor.read_parts(start, stop), (stop - start, tensor.shape[-1])
        rows = QuantizedTensor(parts, tensor.precision, shape, line.name, "file")
        yield Piece(rows, start, stop == tensor.rows, line)


def chunk_rows(rows: int, cols: int, precision: Precision) -> int:
    """Return the rows to encode at a time: about `CHUNK` elements, or all if the rows depend on each other."""
    return rows_of_chunk(cols) if precision.rowwise else max(1, rows)


def rows_of_chunk(cols: int) -> int:
    """Return the rows of about `CHUNK` elements."""
    return max(1, CHUNK // max(1, cols))


def raw_rows(tensor: AnyTensor, codec: Codec, start: int, stop: int) -> Rows:
    """Return rows in the file's type if the codec accepts it; else as float32, or with the type to widen."""
    if isinstance(tensor, EncodedTensor):
        if not tensor.sliceable:
            return Rows(start, tensor.float32(start, stop))
        shape = (stop - start, tensor.shape[-1])
        return Rows(start, QuantizedTensor(tensor.read_parts(start, stop), tensor.precision, shape, tensor.name))
    rows = tensor.read_rows(start, stop)
    if tensor.dtype == "bfloat16" and codec.reference.traits.source_dtypes:
        return Rows(start, rows.view(bfloat16()))
    if tensor.dtype == "float32" or (tensor.dtype == "float16" and codec.narrow):
        return Rows(start, rows)
    return Rows(start, rows, tensor.dtype)


def source_rows(tensor: AnyTensor, precision: Precision, start: int, stop: int) -> Array:
    """Return rows as the precision's reference accepts them: float32, or the source's type if that matters."""
    return raw_rows(tensor, codec(precision, REFERENCE), start, stop).for_reference(tensor.name)


def encode_chunk(
    rows: Rows | Afar,
    *,
    codec: Codec,
    importance: F32 | None,
    name: str,
    finite: bool = True,
) -> Parts:
    """Encode one chunk of rows; a module-level function of picklable arguments, so that any executor can run it."""
    local = rows if isinstance(rows, Rows) else rows.read(codec)
    x = local.for_reference(name)
    if finite:
        return codec.encode_checked(x, importance, name, local.first)
    return codec.encode(x, importance)


__all__ = [
    "AHEAD",
    "CHUNK",
    "Afar",
    "Encoder",
    "FarSource",
    "LostWorkersError",
    "Piece",
    "Rows",
    "bfloat16",
    "chunk_rows",
    "encode_chunk",
    "raw_rows",
    "rows_of_chunk",
    "source_rows",
    "together",
    "weighted",
]
