"""Workers of other processes write every format: what they need is pickled, and the bytes are those of threads."""

from __future__ import annotations

import pickle
from concurrent.futures import Executor, Future

import pytest

import edgekit
from edgekit.pipeline._placed import Sent
from edgekit.testing.models import artifact_of, random_model, small_llama
from edgekit_mlx import writer as mlx

FORMATS = {
    "hf": "affine:int4-sym-g32",
    "gguf": "Q4_0",
    "mlx": "4bit",
    "openvino": "INT4_SYM",
    "onnx": "MATMUL_NBITS_4",
    "onnx-portable": "MATMUL_NBITS_4",
}


class Pickling(Executor):
    """Runs what is left of a call after pickling, which is all that another process gets."""

    def __init__(self):
        self.results = []

    def submit(self, fn, /, *args):
        fn, args = pickle.loads(pickle.dumps((fn, args)))
        future = Future()
        future.set_result(fn(*args))
        self.results.append(future.result())
        return future


@pytest.mark.parametrize("format", FORMATS)
def test_workers_write_every_format(format, tmp_path, monkeypatch):
    monkeypatch.setattr(mlx, "SHARD", 40_000)  # several files
    model = artifact_of(random_model(small_llama(head_dim=64)), tmp_path / "memory")
    source = edgekit.convert(model, tmp_path / "source", format="hf", dtype="BF16").path
    pool, names = Pickling(), ("here.gguf", "there.gguf") if format == "gguf" else ("here", "there")
    here, there = (
        edgekit.quantize(
            source, FORMATS[format], to=tmp_path / name, format=format, executor=executor, allow_unquantized=True
        ).path
        for name, executor in zip(names, (None, pool), strict=True)
    )
    files = sorted(path for path in here.rglob("*")) if here.is_dir() else [here]
    for file in files:
        assert file.read_bytes() == (there / file.name if here.is_dir() else there).read_bytes(), file.name
    assert any(pool.results)
    assert not any(isinstance(result, Sent) for result in pool.results)
