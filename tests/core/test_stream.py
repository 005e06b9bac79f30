"""Tensors through an executor: the next ones are under way while one is written, and never too many."""

import gc
import json
import subprocess
import sys
import time
import weakref
from concurrent.futures import Executor, Future

import numpy as np
import pytest

import edgekit
from edgekit.encoding import codec, encode
from edgekit.errors import NonFiniteError
from edgekit.pipeline import _conversion as conversion
from edgekit.pipeline import _stream
from edgekit.precision import find_precision
from edgekit.recipe import Assignment, Slot
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing._trips import random_artifact

Q8_0, F32 = find_precision("ggml:Q8_0"), find_precision("float:F32")


class Slow(Executor):
    """Does a job when its result is asked for, and counts what was submitted and is not done."""

    def __init__(self):
        self.waiting, self.most = {}, 0

    def submit(self, job, rows, **options):
        future = Future()
        self.waiting[id(future)] = rows.values.size
        self.most = max(self.most, sum(self.waiting.values()))
        result = future.result

        def run(timeout=None):
            if not future.done():
                del self.waiting[id(future)]
                future.set_result(job(rows, **options))
            return result(timeout)

        future.result = run
        return future


def pair(name, shape, seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    slot = Slot(name, name, Tensor.of(name, values), F32)
    return slot, Assignment(name, name, shape, Q8_0, "test")


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(_stream, "CHUNK", 1024)
    monkeypatch.setattr(_stream, "AHEAD", 4096)
    return _stream.Encoder(Slow(), "reference", {}, False)


def test_small_tensors_are_under_way_together(encoder):
    tensors = encoder.encoded([pair(f"t{i}", (4, 64), i) for i in range(40)])
    assert next(tensors).name == "t0"
    assert len(encoder.pool.waiting) == 16
    assert [tensor.name for tensor in tensors] == [f"t{i}" for i in range(1, 40)]


def test_what_is_under_way_is_bounded(encoder):
    shapes = [(16, 64), (500, 64), (3, 64), (64, 320), (1, 32)]
    tensors = list(encoder.encoded([pair(f"t{i}", shape, i) for i, shape in enumerate(shapes)]))
    assert [tensor.shape for tensor in tensors] == shapes
    assert encoder.pool.most <= 4096 + 1024
    assert not encoder.pool.waiting


def test_pieces_come_in_order_and_say_where_they_belong(encoder):
    pairs = [pair("a", (16, 64)), pair("b", (40, 64)), pair("c", (3, 64))]
    pieces = list(encoder.pieces(pairs))
    assert [(piece.rows.name, piece.first, piece.rows.rows, piece.last) for piece in pieces] == [
        ("a", 0, 16, True), ("b", 0, 16, False), ("b", 16, 16, False), ("b", 32, 8, True), ("c", 0, 3, True),
    ]  # fmt: skip


def test_an_encoded_tensor_is_copied_in_rows(encoder):
    """It is read as it is written, so that a stack that is carried over is not in memory as a whole."""
    parts, asked = encode(np.random.default_rng(5).standard_normal((40, 64)).astype(np.float32), Q8_0).parts, []

    def read_parts(start, stop):
        asked.append((start, stop))
        return {name: part[start:stop] for name, part in parts.items()}

    tensor = EncodedTensor("t", (4, 10, 64), Q8_0, parts["blocks"].nbytes, read_parts)
    slot, line = Slot("t", "t", tensor, Q8_0), Assignment("t", "t", (4, 10, 64), Q8_0, "test")
    pieces = list(encoder.pieces([(slot, line)]))
    assert asked == [(0, 16), (16, 32), (32, 40)]
    assert [piece.last for piece in pieces] == [False, False, True]
    assert np.array_equal(np.concatenate([piece.rows.parts["blocks"] for piece in pieces]), parts["blocks"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_chunks_come_together_again(encoder, dtype):
    slot, assignment = pair("t", (77, 96), 3, dtype)
    (tensor,) = encoder.encoded([(slot, assignment)])
    own = codec(Q8_0, "reference")
    whole = _stream.encode_chunk(_stream.raw_rows(slot.tensor, own, 0, 77), codec=own, importance=None, name="t")
    assert np.array_equal(tensor.parts["blocks"], whole["blocks"])


def test_after_a_failure_nothing_more_is_encoded(encoder):
    slot, assignment = pair("bad", (4, 64))
    slot.tensor.read_rows(0, 4)[2, 5] = np.nan
    tensors = encoder.encoded([(slot, assignment), *(pair(f"t{i}", (4, 64)) for i in range(9))])
    cancelled = []
    submit = encoder.pool.submit

    def watched(job, rows, **options):
        future = submit(job, rows, **options)
        future.cancel = lambda: cancelled.append(future)
        return future

    encoder.pool.submit = watched
    with pytest.raises(NonFiniteError, match="bad holds nan at row 2, column 5"):
        list(tensors)
    assert len(cancelled) == 10


@pytest.mark.parametrize("cores", [1, 2, 16, 17, 64, 1000, 1 << 30])
def test_what_is_under_way_does_not_grow_with_the_number_of_cores(cores):
    chunk, ahead = _stream.limits(cores)
    assert 1 <= chunk <= 1 << 19
    assert chunk <= ahead <= 1 << 24
    assert ahead // chunk >= min(2 * cores, 1 << 24)  # every core has one chunk, and one that waits for it


MEASURE = """
import json, os, sys, tracemalloc
os.sched_getaffinity = lambda _: range(int(sys.argv[1]))
import numpy as np
import edgekit
from edgekit.recipe import Assignment, Slot
from edgekit.pipeline import _stream
from edgekit.precision import Precision, find_precision
from edgekit.tensor import Tensor
from concurrent.futures import Executor, Future, ThreadPoolExecutor

precision, row = find_precision(sys.argv[2]), np.ones((1, 4096), np.float32)

class Lazy(Tensor):  # every read is a new array, as from a file
    def read_rows(self, start, stop):
        return np.repeat(row, stop - start, 0)

def pair(i):
    tensor = Lazy.of(f"t{i}", np.broadcast_to(row, (8192, 4096)))
    return Slot(tensor.name, "t", tensor, precision), Assignment(tensor.name, "t", tensor.shape, precision, "")

def working():  # what one worker holds for a chunk, beside its rows
    slot, assignment = pair(0)
    job = _stream.Encoder(Inline(), "reference", {}, False)._submitted(slot, assignment)
    next(job)
    tracemalloc.start()
    next(job)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak

class Inline(Executor):
    def submit(self, job, *given):
        future = Future()
        future.set_result(job(*given))
        return future

one = working()
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    tracemalloc.start()
    for done in _stream.Encoder(pool, "reference", {}, False).pieces(map(pair, range(4))):
        size = done.rows.nbytes
    print(json.dumps([tracemalloc.get_traced_memory()[1], size, one]))
"""


@pytest.mark.parametrize("cores", ["2", "64"])
def test_memory_of_a_conversion_on_any_number_of_cores(cores):
    """Four tensors of 134 MB: a chunk in every worker, the rows that wait, and what became of them; no whole tensor."""
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, cores, "ggml:Q8_0"], capture_output=True, text=True, check=True
    )
    peak, piece, one = json.loads(told.stdout)
    chunk, ahead = _stream.limits(int(cores))
    waiting = max(0, ahead // chunk + 1 - int(cores)) * chunk * 4
    # A megabyte for what Python itself allocates. Of 64 workers on two cores, as many are at their peak as chance wills.
    done = (ahead // chunk + 1) * piece
    assert peak < int(cores) * one + waiting + done + 1e6


def test_the_source_is_out_of_memory_when_the_result_is_opened(tmp_path, monkeypatch):
    """Both hold a vocabulary, so that the peak of a small model would be there. No collection of cycles helps."""
    edgekit.convert(random_artifact(tmp_path), tmp_path / "source")
    opened, alive = [], []
    open_source, settled = conversion.open_source, conversion._settled

    def opening(*arguments):
        artifact = open_source(*arguments)
        opened.append(weakref.ref(artifact))
        return artifact

    def opening_again(*arguments):
        until = time.monotonic() + 10
        while any(each() is not None for each in opened) and time.monotonic() < until:
            time.sleep(0.01)  # a thread of the pool lets go of its last job just after it has handed over the result
        alive.extend(each() for each in opened)
        return settled(*arguments)

    monkeypatch.setattr(conversion, "open_source", opening)
    monkeypatch.setattr(conversion, "_settled", opening_again)
    gc.disable()
    try:
        edgekit.quantize(tmp_path / "source", "affine:int8-sym-g32", to=tmp_path / "target")
    finally:
        gc.enable()
    assert alive == [None]
