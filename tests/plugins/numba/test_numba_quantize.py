"""Whole models: the same artifact with and without the kernels, and the manifest says who encoded."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.testing.models import artifact_of, random_model
from edgekit_numba import encoders

CONFIG = ModelConfig(
    family="llama", layers=2, width=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=320, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.125, rotary_dim=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "target"),
    [
        ("Q4_K_M", "model.gguf"),
        ("Q3_K_M", "model.gguf"),
        ("mlx:int4-g64", "model"),
        ("openvino:int4-asym-g64", "model"),
    ],
)
def test_the_artifact_is_the_same(recipe, target, tmp_path):
    source = artifact_of(random_model(CONFIG), tmp_path / "source")
    made = {}
    for backend in (None, "reference"):
        (tmp_path / str(backend)).mkdir()
        made[backend] = edgekit.quantize(source, recipe, to=tmp_path / str(backend) / target, backend=backend)
    for fast, slow in zip(made[None].files, made["reference"].files, strict=True):
        assert fast.read_bytes() == slow.read_bytes()
    backends = {backend: artifact.manifest.tensors for backend, artifact in made.items()}
    encoded = [name for name, entry in backends[None].items() if not entry["precision"].startswith("float:")]
    assert encoded
    assert {backends[None][name]["backend"] for name in encoded} == {"numba"}
    assert {backends["reference"][name]["backend"] for name in encoded} == {"reference"}
    assert "edgekit-numba" in made[None].manifest.versions


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("recipe", ["Q4_K_M", "F16", "Q8_0"])
def test_sources_of_16_bits_and_tensors_that_stay_floats(recipe, dtype, tmp_path):
    """A backend that is asked for by name encodes what it can; floats are the core's own."""
    source = edgekit.convert(
        artifact_of(random_model(CONFIG), tmp_path / "source"), tmp_path / "source.gguf", dtype=dtype
    )
    made = []
    for backend in ("numba", "reference"):
        (tmp_path / backend).mkdir()
        made.append(edgekit.quantize(source, recipe, to=tmp_path / backend / "model.gguf", backend=backend))
    assert made[0].path.read_bytes() == made[1].path.read_bytes()


class Meeting(ThreadPoolExecutor):
    """Threads that wait for each other once a job: all of a job's first widened pieces are in memory together."""

    def __init__(self, threads, name):
        super().__init__(threads, name)
        self.barrier, self.met, self.original = threading.Barrier(threads), threading.local(), encoders.widened
        encoders.widened = self.widened

    def widened(self, x, into):
        values = self.original(x, into)
        if not hasattr(self.met, "before"):
            self.met.before = self.barrier.wait()
        return values

    def shutdown(self, *arguments, **options):
        super().shutdown(*arguments, **options)
        encoders.widened = self.original


@pytest.mark.parametrize("cores", [2, 64])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["mlx:int4-g64", "openvino:int4-sym-g64", "openvino:int4-asym-g64", "ggml:Q4_K"])
def test_memory_does_not_grow_with_the_number_of_cores(name, dtype, cores, monkeypatch):
    x = np.resize(np.random.default_rng(7).standard_normal((256, 4096)).astype(dtype), (4096, 4096))  # 8 parts
    importance = np.ones(4096, np.float32)
    expected = edgekit.encode(x[:64], name, importance=importance)  # compiles the kernel
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(encoders, "Workers", Meeting)
    tracemalloc.start()
    try:
        encoded = edgekit.encode(x, name, importance=importance)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for part, values in expected.parts.items():
        assert values.ndim == 0 or np.array_equal(encoded.parts[part][:64].view(np.uint8), values.view(np.uint8))
    assert peak < encoded.nbytes + 24e6  # promised are 64 MB; 16 MiB of them may be widened weights


def test_many_cores_widen_no_more_than_few(monkeypatch):
    """A piece is at least one group for each lane: of rows of a million elements, 67 MB."""
    threads = []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(512), raising=False)
    monkeypatch.setattr(encoders, "Workers", lambda count, name: threads.append(count) or ThreadPoolExecutor(count))
    for shape in ((1 << 20, 256), (1 << 14, 1 << 14), (64, 1 << 20)):
        encoders.in_parts(lambda part: None, np.broadcast_to(np.float16(0), shape))
    assert threads == [64, encoders.WIDENED // (encoders.processor().lanes << 14)]  # and one at a time
