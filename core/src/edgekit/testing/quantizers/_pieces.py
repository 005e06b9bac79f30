"""Checks that the bytes do not depend on how the work is divided: row slices, large matrices, threads, processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from edgekit.reference import Parts
from edgekit.testing import _samples
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import Kit, NotApplicable, Profile, fail
from edgekit.testing._samples import widths
from edgekit.testing._subjects import QuantizerSubject
from edgekit.testing.quantizers._judge import encode
from edgekit.typing import F32

#: The checks of this module, in the order in which they run.
ROOM: Kit[QuantizerSubject] = Kit("quantizers")
#: Elements of a large matrix, more than the chunks of kernels have; and the seconds that a slow search may take.
_LARGE, _SECONDS = {"quick": 1 << 20}, {"quick": 2.0}
_LARGEST, _LONGEST = 1 << 21, 20.0
_DISTINCT = 61


def _rowwise(subject: QuantizerSubject) -> None:
    if not subject.precision.rowwise:
        raise NotApplicable("the rows of this precision depend on each other")


@ROOM.check
def check_row_slices(subject: QuantizerSubject, profile: Profile) -> None:
    """Encoding slices of rows, of any size and from any chunk of memory, gives the bytes of the whole.

    edgekit streams a tensor in chunks of rows. Typical faults: one scale for all rows of a chunk, a last partial chunk
    that is encoded differently.
    """
    _rowwise(subject)
    x = _samples.draw("rows of every magnitude", 4, (35, widths(subject.precision)[0]))
    whole = encode(subject, x)
    for step in (1, 2, 5, 16, 33):
        joined = _joined([encode(subject, x[start : start + step]) for start in range(0, len(x), step)])
        if not same_parts(whole, joined):
            fail(f"in slices of {step} rows the bytes differ from the whole's: {diagnose(whole, joined)}")


def _joined(chunks: list[Parts]) -> Parts:
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


@ROOM.check
def check_large(subject: QuantizerSubject, profile: Profile) -> None:
    """Every row of a matrix larger than any internal chunk gets the same bytes as in a small matrix.

    The matrix has a million elements in the quick profile and two million in the others (fewer if a search would take
    many seconds), so that overflowing indices and the last, partial chunk of a kernel are covered. Its rows repeat, and
    each is compared with the same row in a small matrix.
    """
    _rowwise(subject)
    cols = widths(subject.precision)[0]
    few = _samples.draw("normal", 6, (_DISTINCT, cols))
    began = time.perf_counter()
    expected = encode(subject, few)
    affordable = _SECONDS.get(profile.name, _LONGEST) / (time.perf_counter() - began)
    rows = int(min(_LARGE.get(profile.name, _LARGEST), few.size * max(affordable, 8))) // cols + 3
    whole = encode(subject, np.resize(few, (rows, cols)))
    for key, part in whole.items():
        at = _first_wrong(expected[key], part)
        if at is not None:
            row = {name: each[at : at + 1] for name, each in whole.items()}
            alone = {name: each[at % _DISTINCT][None] for name, each in expected.items()}
            fail(f"row {at} of {rows} differs from the same row in a small matrix: {diagnose(alone, row)}")


def _first_wrong(expected: npt.NDArray[np.generic], part: npt.NDArray[np.generic]) -> int | None:
    """Return the index of the first row that differs from the row that it repeats; None if all are equal."""
    small, large = (each.reshape(len(each), -1).view(np.uint8) for each in (expected, part))
    for start in range(0, len(large), len(small)):
        piece = large[start : start + len(small)]
        differing = (piece != small[: len(piece)]).any(axis=1)
        if differing.any():
            return start + int(np.argmax(differing))
    return None


@ROOM.check
def check_executors(subject: QuantizerSubject, profile: Profile) -> None:
    """Any number of threads that encode at the same time get the same bytes.

    All threads start at once, and Python switches between them as often as possible. Typical fault: a scratch buffer
    that belongs to the object or the module.
    """
    cols = widths(subject.precision)[0]
    jobs = [_samples.draw("rows of every magnitude", seed, (max(4, 2048 // cols), cols)) for seed in range(8)]
    start = time.perf_counter()
    alone = [encode(subject, x) for x in jobs]
    times = _rounds(time.perf_counter() - start)
    for workers in (2, 4, 8):
        for number, parts in enumerate(_together(subject, jobs, workers, times)):
            want = alone[number % len(jobs)]
            if not same_parts(want, parts):
                fail(f"job {number} on {workers} threads: {diagnose(want, parts)}; calls share memory")


def _rounds(seconds: float) -> int:
    """Return the number of rounds, 3 to 16, that take about a second if one round takes `seconds`.

    A buffer that is shared for microseconds is missed in one of seven runs of 3 rounds, and in none of 100 runs of 16
    (numpy 2.0).
    """
    return min(16, max(3, int(1 / max(seconds, 1e-3))))


def _together(subject: QuantizerSubject, jobs: list[F32], workers: int, times: int) -> list[Parts]:
    ready = threading.Barrier(workers)

    def work(number: int) -> Parts:
        if number < workers:
            ready.wait(timeout=60)
        return encode(subject, jobs[number % len(jobs)])

    with ThreadPoolExecutor(workers) as pool:
        # All threads are there before Python switches often: in CPython 3.11 two that start at once cannot both be
        # traced (by coverage), and one of them would be missing at the barrier.
        list(pool.map(lambda _: ready.wait(timeout=60), range(workers)))
        with _switching_often():
            return list(pool.map(work, range(times * len(jobs))))


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


_ELSEWHERE = """
import pickle, sys

try:
    quantizer, x, importance = pickle.load(sys.stdin.buffer)
except Exception:
    sys.exit(9)
parts = {key: part.copy() for key, part in dict(quantizer.encode(x, importance)).items()}
pickle.dump(parts, sys.stdout.buffer)
"""


@ROOM.check
def check_processes(subject: QuantizerSubject, profile: Profile) -> None:
    """In another process, with one thread and another hash seed, the bytes are the same.

    The executor of a cluster relies on this. Skipped in the quick profile, and if the object cannot be pickled.
    """
    if profile.name == "quick":
        raise NotApplicable("the quick profile starts no process")
    x = _samples.draw("rows of every magnitude", 9, (64, widths(subject.precision)[0]))
    try:
        sent = pickle.dumps((subject.quantizer, x, subject.importance(x, None)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotApplicable(f"it cannot be sent to another process ({error})") from None
    elsewhere, here = _encoded_elsewhere(sent), encode(subject, x)
    if not same_parts(here, elsewhere):
        fail(f"another process, with one thread and another hash seed, encodes otherwise: {diagnose(here, elsewhere)}")


def _encoded_elsewhere(sent: bytes) -> Parts:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, **one_thread, "PYTHONHASHSEED": "1234", "PYTHONPATH": path}
    command = [sys.executable, "-c", _ELSEWHERE]
    done = subprocess.run(command, input=sent, env=environment, capture_output=True, timeout=300, check=False)
    if done.returncode == 9:
        raise NotApplicable("another process cannot import it")
    if done.returncode:
        fail(f"another process ends with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    parts: Parts = pickle.loads(done.stdout)
    return parts


__all__ = ["ROOM", "check_executors", "check_large", "check_processes", "check_row_slices"]
