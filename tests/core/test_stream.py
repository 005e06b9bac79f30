"""Tensors through an executor: the next ones are under way while one is written, and never too many."""

from concurrent.futures import Executor, Future

import numpy as np
import pytest

from edgekit.errors import NonFiniteError
from edgekit.pipeline import stream as _stream
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Slot
from edgekit.tensor import Tensor

Q8_0, F32 = Precision.parse("ggml:Q8_0"), Precision.parse("float:F32")


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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_chunks_come_together_again(encoder, dtype):
    slot, assignment = pair("t", (77, 96), 3, dtype)
    (tensor,) = encoder.encoded([(slot, assignment)])
    whole = _stream.encode_chunk(
        _stream.raw_rows(slot.tensor, Q8_0, 0, 77), precision=Q8_0, importance=None, backend="reference", name="t"
    )
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
