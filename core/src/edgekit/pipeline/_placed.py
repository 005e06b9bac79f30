"""Workers that read their rows, encode them and write them to their place in the file.

The calling thread cuts tensors into jobs, gives each tensor its place in the plan's order, and records which tensors
are complete; it sees no row. A job is a few chunks of rows, one after the other, so that it costs the calling thread
little, and a worker holds one chunk at a time.

Workers of other processes and machines do the same where they see the file (`edgekit.files._shared`). Those that do
not send back what they encoded, and the calling thread writes it.
"""

from __future__ import annotations

import socket
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial

import attrs

from edgekit.artifact import Writer
from edgekit.encoding._codecs import Codec
from edgekit.encoding._importance import of_role
from edgekit.errors import ResourceError
from edgekit.files._shared import SharedFile
from edgekit.files.workers import Workers, cores
from edgekit.formats._parts import encoded_parts, rows_together
from edgekit.formats.writer import Allotted, PlannedWriter, RowPlaces
from edgekit.pipeline import _stream
from edgekit.pipeline._progress import Progress
from edgekit.pipeline._stream import Encoder, FarSource, encode_chunk, raw_rows, rows_of_chunk
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Slot
from edgekit.reference import Parts
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.typing import F32

#: Chunks of a job, at most; and of one for a worker of an engine, which spends milliseconds on each.
_CHUNKS, _FAR_CHUNKS = 8, 32
#: Jobs for each core, at least, where a model is small.
_SHARE = 8
#: Jobs for each core that are submitted before the calling thread waits, and how many are left then: it wakes seldom.
_MOST, _FEWEST = 8, 4
#: Jobs of a single chunk whose workers send back what they encoded: the results are in memory until they are written.
_MOST_SENT = 32
#: Workers, at most, that are asked first whether they see the file.
_ASKED = 64
Pairs = Sequence[tuple[Slot, Assignment]]


def writes_itself(encoder: Encoder, writer: Writer) -> bool:
    """Return whether the encoder's workers can write to their place: they read for themselves, the writer has places.

    A subclass that has a `write_rows` of its own gets its rows there.
    """
    return (
        (isinstance(encoder.pool, Workers | ThreadPoolExecutor) or encoder.afar is not None)
        and isinstance(writer, PlannedWriter)
        and writer.in_any_order
        and type(writer).write_rows is PlannedWriter.write_rows
    )


def write_placed(
    writer: PlannedWriter, encoder: Encoder, pairs: Pairs, progress: Progress | None
) -> Generator[tuple[Slot, Assignment], None, None]:
    """Write the tensors of a plan from the writer's next on; yield each that the workers cannot place, when it is next.

    The caller writes those by other means before it goes on.

    Raises:
        As `edgekit.quantize`: of several tensors with an error, the first one's is raised.
    """
    line = _Line(writer, pairs, progress, encoder, cores() if encoder.afar is None else encoder.workers)
    try:
        line.tell()
        line.ask()
        step = line.step
        for slot, assignment in pairs[writer.done :]:
            parts = encoded_parts(slot.tensor, assignment.precision)
            if parts is None:
                line.drain(0)
                yield slot, assignment
                line.tell()
                continue
            allotted = writer.allot(assignment.name, assignment.precision, parts)
            for start, stop, job in _jobs(encoder, writer, slot, assignment, allotted, step):
                line.add(start, stop, allotted, job)
            line.end(allotted)
        line.drain(0)
    finally:
        line.stop()


@attrs.frozen(eq=False)
class _Job:
    """Rows that are under way, and what its worker returns: the pieces that it wrote, or `Sent`; None from a thread."""

    start: int
    stop: int
    allotted: Allotted
    future: Future[_Done]


@attrs.define
class _Line:
    """What is under way, in the plan's order: jobs, and after those of each tensor its place."""

    writer: PlannedWriter
    pairs: Pairs
    progress: Progress | None
    encoder: Encoder
    cores: int
    steps: deque[_Job | Allotted] = attrs.field(factory=deque)
    waiting: int = 0
    sent: bool = False

    @property
    def step(self) -> int:
        """Elements of a job."""
        if self.sent:
            return _stream.CHUNK
        total = sum(assignment.size for _, assignment in self.pairs)
        most = _CHUNKS if self.encoder.afar is None else _FAR_CHUNKS
        return max(_stream.CHUNK, min(most * _stream.CHUNK, total // (_SHARE * self.cores)))

    @property
    def bounds(self) -> tuple[int, int]:
        """Jobs that are under way at most, and those that are left when the calling thread stops waiting."""
        most = _MOST_SENT if self.sent else _MOST * self.cores
        return most, most * _FEWEST // _MOST

    def ask(self) -> None:
        """Ask workers elsewhere whether they see the file: jobs are smaller where they do not."""
        if self.encoder.afar is None or self.writer.done == len(self.pairs):
            return
        file = self.writer.file.share() if self.writer.stores_elsewhere else None
        self.sent = file is None
        if file is None:
            return
        with self.encoder.watched():
            futures = [self.encoder.pool.submit(sees, file) for _ in range(min(self.cores, _ASKED))]
            for future in futures:
                if unseen := future.result():
                    self.say(unseen)

    def say(self, host: str) -> None:
        """Note that a worker does not see the file."""
        self.sent = True
        self.writer.remarks["sent_back"] = (
            f"workers do not see {self.writer.path} (one is on {host}), so this process wrote for them; share its "
            "directory with them under the same path"
        )

    def add(self, start: int, stop: int, allotted: Allotted, job: Callable[[], _Done]) -> None:
        """Submit a job, and wait for the oldest ones if too many are under way."""
        with self.encoder.watched():
            future = self.encoder.pool.submit(run_job, job)
        self.steps.append(_Job(start, stop, allotted, future))
        self.waiting += 1
        most, fewest = self.bounds
        if self.waiting > most:
            self.drain(fewest)

    def end(self, allotted: Allotted) -> None:
        """A tensor's jobs have all been added."""
        self.steps.append(allotted)
        self.drain(self.waiting)

    def drain(self, limit: int) -> None:
        """Wait for the oldest jobs until at most so many are under way; record the tensors that are complete."""
        if self.encoder.afar is None and (last := self.waiting - limit) > 1:  # the others are mostly done when it is
            [step for step in self.steps if isinstance(step, _Job)][last - 1].future.exception()
        while self.steps and (self.waiting > limit or isinstance(self.steps[0], Allotted)):
            step = self.steps.popleft()
            if isinstance(step, Allotted):
                self.writer.complete(step)
                self.tell()
            else:
                self.waiting -= 1
                self.take(step)

    def take(self, job: _Job) -> None:
        """Wait for a job, and record or write what its worker returns."""
        with self.encoder.watched():
            done = job.future.result()
        if isinstance(done, Sent):
            job.allotted.put(job.start, job.stop, done.pieces)
            if done.unseen and not self.sent:
                self.say(done.host)
        elif done is not None:
            job.allotted.put_done(done)

    def tell(self) -> None:
        """Say which tensor is next."""
        if self.progress and (done := self.writer.done) < len(self.pairs):
            self.progress(done, len(self.pairs), self.pairs[done][1].name)

    def stop(self) -> None:
        """Cancel what has not begun, and wait for the threads' rest: none writes to a file that is closed.

        Workers elsewhere have files of their own, and may not answer any more; what they have said is recorded.
        """
        jobs = [step for step in self.steps if isinstance(step, _Job)]
        for job in jobs:
            with suppress(ResourceError), self.encoder.watched():  # a lost pool's futures cannot be cancelled either
                job.future.cancel()
        if self.encoder.afar is None:
            wait([job.future for job in jobs])
            return
        for job in jobs:
            if isinstance(job.future, Future) and job.future.done() and not job.future.cancelled():
                with suppress(Exception):  # of the work, or of the disk: another error is under way
                    self.take(job)


@attrs.frozen
class _Rows:
    """How a worker encodes the rows of a tensor.

    Attributes:
        codec: what encodes them; None copies the encoded rows of the file.
        chunk: rows to encode at a time.
        name: for messages.
        finite: whether NaN and infinities are refused.
    """

    codec: Codec | None
    chunk: int
    name: str
    finite: bool

    def pieces(self, tensor: AnyTensor, start: int, stop: int, importance: F32 | None) -> Iterator[tuple[int, Parts]]:
        """Read and encode rows ``start:stop`` of the tensor, a chunk at a time."""
        for first in range(start, stop, self.chunk):
            end = min(first + self.chunk, stop)
            if self.codec is None:
                assert isinstance(tensor, EncodedTensor)
                yield first, dict(tensor.read_parts(first, end))
            else:
                rows = raw_rows(tensor, self.codec, first, end)
                yield (
                    first,
                    encode_chunk(rows, codec=self.codec, importance=importance, name=self.name, finite=self.finite),
                )

    def write(self, tensor: AnyTensor, allotted: Allotted, start: int, stop: int, importance: F32 | None) -> None:
        """Read, encode and write rows ``start:stop``, in a thread of the process that has the file open."""
        allotted.put(start, stop, self.pieces(tensor, start, stop, importance))


@attrs.frozen
class Sent:
    """What a worker encoded and did not write.

    Attributes:
        pieces: the first row's number and the parts of each chunk.
        unseen: whether it could have written, had it seen the file.
        host: the worker's.
    """

    pieces: list[tuple[int, Parts]]
    unseen: bool
    host: str


_Done = list[tuple[int, int, int]] | Sent | None


def sees(file: SharedFile) -> str:
    """Return the name of this machine if a file cannot be written from here; empty if it can."""
    with file.opened() as descriptor:
        return socket.gethostname() if descriptor is None else ""


def run_job(job: Callable[[], _Done]) -> _Done:
    """Call a job; what engines run has to be a function, and they show its name."""
    return job()


@attrs.frozen
class FarRows:
    """Rows of a tensor for a worker of another process, which opens the source and the target by their paths; pickled.

    Attributes:
        source: where the tensor is.
        tensor: its name in the source's layout.
        file: where the rows are written; None sends them back.
        places: of the rows there.
        rows: how they are encoded.
        start, stop: bounds of the rows.
        importance: of the columns.
    """

    source: FarSource
    tensor: str
    file: SharedFile | None
    places: RowPlaces | None
    rows: _Rows
    start: int
    stop: int
    importance: F32 | None

    def __call__(self) -> _Done:
        """Write the rows, and return what was written; or return them."""
        pieces = self.rows.pieces(self.source.tensor(self.tensor), self.start, self.stop, self.importance)
        if self.file is None or self.places is None:
            return Sent(list(pieces), False, socket.gethostname())
        with self.file.opened() as descriptor:
            if descriptor is None:
                return Sent(list(pieces), True, socket.gethostname())
            return self.places.put(self.start, self.stop, pieces, partial(_put, self.file, descriptor))


def _put(file: SharedFile, descriptor: int, offset: int, data: memoryview, crc: int) -> int:
    file.put(descriptor, offset, data)
    return zlib.crc32(data, crc)


def _jobs(
    encoder: Encoder, writer: PlannedWriter, slot: Slot, assignment: Assignment, allotted: Allotted, elements: int
) -> Iterator[tuple[int, int, Callable[[], _Done]]]:
    """Yield the bounds and the jobs of a tensor's rows, without those that an interrupted run has done."""
    tensor, precision = slot.tensor, assignment.precision
    copied = isinstance(tensor, EncodedTensor) and tensor.precision == precision
    unit = _rows_together(tensor, precision, copied)
    rows = _Rows(
        codec=None if copied else encoder.codec_of(precision),
        chunk=max(unit, rows_of_chunk(tensor.shape[-1] if tensor.shape else 1) // unit * unit),
        name=encoder.where + tensor.name,
        finite=not (encoder.keep_nonfinite and precision.convention == "float"),
    )
    file = allotted.file.share() if encoder.afar and writer.stores_elsewhere else None
    importance = of_role(encoder.importance, assignment.role) if precision.rowwise and not copied else None
    step = max(rows.chunk, elements * tensor.rows // max(1, tensor.size) // unit * unit)
    for start, stop, weights in _stream.weighted(tensor.rows, step, importance):
        if allotted.resumed(start, stop):
            continue
        if encoder.afar is None:
            yield start, stop, partial(rows.write, tensor, allotted, start, stop, weights)
        else:
            places = allotted.by_rows if file else None
            yield start, stop, FarRows(encoder.afar, slot.name, file, places, rows, start, stop, weights)


def _rows_together(tensor: AnyTensor, precision: Precision, copied: bool) -> int:
    """Return how many rows of a tensor are encoded and written together: all, if they depend on each other."""
    if not (copied or precision.rowwise or precision.packed_rows):
        return max(1, tensor.rows)
    together = rows_together(precision, tensor.shape or (1,))
    assert together is not None  # else nothing is known of its parts, and it was not given a place
    return together.rows


__all__ = ["FarRows", "Sent", "run_job", "sees", "write_placed", "writes_itself"]
