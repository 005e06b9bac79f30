"""Workers that read their rows, encode them and write them to their place in the file.

The calling thread cuts tensors into jobs, gives each tensor its place in the plan's order, and records which tensors
are complete; it sees no row. A job is a few chunks of rows, one after the other, so that it costs the calling thread
little, and a worker holds one chunk at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import attrs

from edgekit.artifact import Writer
from edgekit.encoding._codecs import Codec
from edgekit.encoding._importance import of_role
from edgekit.files.workers import Workers, cores
from edgekit.formats._parts import encoded_parts
from edgekit.formats.writer import Allotted, PlannedWriter
from edgekit.pipeline import _stream
from edgekit.pipeline._progress import Progress
from edgekit.pipeline._stream import Encoder, chunk_rows, encode_chunk, raw_rows
from edgekit.recipe import Assignment, Slot
from edgekit.reference import Parts
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.typing import F32

#: Chunks of a job, at most.
_CHUNKS = 8
#: Jobs for each core, at least, where a model is small.
_SHARE = 8
#: Jobs for each core that are submitted before the calling thread waits, and how many are left then: it wakes seldom.
_MOST, _FEWEST = 8, 4
Pairs = Sequence[tuple[Slot, Assignment]]


def writes_itself(encoder: Encoder, writer: Writer) -> bool:
    """Return whether the encoder's workers can write to their place: threads of this process, and a writer with places.

    A subclass that has a `write_rows` of its own gets its rows there.
    """
    return (
        isinstance(encoder.pool, Workers | ThreadPoolExecutor)
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
    line = _Line(writer, pairs, progress, cores())
    try:
        line.tell()
        for slot, assignment in pairs[writer.done :]:
            parts = encoded_parts(slot.tensor, assignment.precision)
            if parts is None:
                line.drain(0)
                yield slot, assignment
                line.tell()
                continue
            allotted = writer.allot(assignment.name, assignment.precision, parts)
            for job in _jobs(encoder, slot, assignment, allotted, line.step):
                line.add(encoder.pool.submit(job))
            line.end(allotted)
        line.drain(0)
    finally:
        line.stop()


@attrs.define
class _Line:
    """What is under way, in the plan's order: jobs, and after those of each tensor its place."""

    writer: PlannedWriter
    pairs: Pairs
    progress: Progress | None
    cores: int
    steps: deque[Future[None] | Allotted] = attrs.field(factory=deque)
    waiting: int = 0

    @property
    def step(self) -> int:
        """Elements of a job."""
        total = sum(assignment.size for _, assignment in self.pairs)
        return max(_stream.CHUNK, min(_CHUNKS * _stream.CHUNK, total // (_SHARE * self.cores)))

    def add(self, future: Future[None]) -> None:
        """Add a job, and wait for the oldest ones if too many are under way."""
        self.steps.append(future)
        self.waiting += 1
        if self.waiting > _MOST * self.cores:
            self.drain(_FEWEST * self.cores)

    def end(self, allotted: Allotted) -> None:
        """A tensor's jobs have all been added."""
        self.steps.append(allotted)
        self.drain(self.waiting)

    def drain(self, limit: int) -> None:
        """Wait for the oldest jobs until at most so many are under way; record the tensors that are complete."""
        if (last := self.waiting - limit) > 1:  # the others are mostly done when it is
            [step for step in self.steps if isinstance(step, Future)][last - 1].exception()
        while self.steps and (self.waiting > limit or isinstance(self.steps[0], Allotted)):
            step = self.steps.popleft()
            if isinstance(step, Allotted):
                self.writer.complete(step)
                self.tell()
            else:
                self.waiting -= 1
                step.result()

    def tell(self) -> None:
        """Say which tensor is next."""
        if self.progress and (done := self.writer.done) < len(self.pairs):
            self.progress(done, len(self.pairs), self.pairs[done][1].name)

    def stop(self) -> None:
        """Cancel what has not begun, and wait for the rest: no worker writes to a file that is closed."""
        futures = [step for step in self.steps if isinstance(step, Future)]
        for future in futures:
            future.cancel()
        wait(futures)


@attrs.frozen
class _Rows:
    """How a worker encodes the rows of a tensor.

    Attributes:
        tensor: whose rows.
        allotted: where they are written.
        codec: what encodes them; None copies the encoded rows of the file.
        chunk: rows to encode at a time.
        name: for messages.
        finite: whether NaN and infinities are refused.
    """

    tensor: AnyTensor
    allotted: Allotted
    codec: Codec | None
    chunk: int
    name: str
    finite: bool

    def write(self, start: int, stop: int, importance: F32 | None) -> None:
        """Read, encode and write rows ``start:stop``."""
        self.allotted.put(start, stop, self._pieces(start, stop, importance))

    def _pieces(self, start: int, stop: int, importance: F32 | None) -> Iterator[tuple[int, Parts]]:
        for first in range(start, stop, self.chunk):
            end = min(first + self.chunk, stop)
            if self.codec is None:
                assert isinstance(self.tensor, EncodedTensor)
                yield first, dict(self.tensor.read_parts(first, end))
            else:
                rows = raw_rows(self.tensor, self.codec, first, end)
                yield (
                    first,
                    encode_chunk(rows, codec=self.codec, importance=importance, name=self.name, finite=self.finite),
                )


def _jobs(
    encoder: Encoder, slot: Slot, assignment: Assignment, allotted: Allotted, elements: int
) -> Iterator[partial[None]]:
    """Yield the jobs of a tensor, without those that an interrupted run has done."""
    tensor, precision = slot.tensor, assignment.precision
    copied = isinstance(tensor, EncodedTensor) and tensor.precision == precision
    rows = _Rows(
        tensor,
        allotted,
        codec=None if copied else encoder.codec_of(precision),
        chunk=chunk_rows(tensor.rows, tensor.shape[-1] if tensor.shape else 1, precision),
        name=encoder.where + tensor.name,
        finite=not (encoder.keep_nonfinite and precision.convention == "float"),
    )
    importance = of_role(encoder.importance, assignment.role) if precision.rowwise and not copied else None
    step = max(rows.chunk, elements * tensor.rows // max(1, tensor.size)) if precision.rowwise else max(1, tensor.rows)
    for start, stop, weights in _stream.weighted(tensor.rows, step, importance):
        if not allotted.resumed(start, stop):
            yield partial(rows.write, start, stop, weights)


__all__ = ["write_placed", "writes_itself"]
