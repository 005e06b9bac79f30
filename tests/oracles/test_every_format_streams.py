"""Every format to every format streams: no conversion holds the largest tensor, whatever it reads and writes."""

from __future__ import annotations

import tracemalloc

import attrs
import pytest

import edgekit
from edgekit.pipeline import _stream as stream
from edgekit.testing.models import artifact_of, random_model, small_llama

#: A format's recipe, and the name of what it writes.
FORMATS = {
    "hf": ("affine:int4-asym-g32", "model"),
    "gguf": ("Q4_0", "model.gguf"),
    "mlx": ("4bit", "model"),
    "openvino": ("INT4_ASYM", "model"),
}
#: Rows of the largest tensor, whose float32 values take 32 MiB; a conversion may hold half of that, buffers included.
VOCAB, WIDTH = 1 << 15, 256
ALLOWED = 4 * VOCAB * WIDTH // 2
PAIRS = [(source, target) for source in FORMATS for target in FORMATS]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model in each format, encoded."""
    config = attrs.evolve(small_llama(hidden_size=WIDTH, intermediate_size=WIDTH, head_dim=64), vocab=VOCAB)
    model = artifact_of(random_model(config), tmp_path_factory.mktemp("source") / "memory")
    return {
        name: edgekit.quantize(
            model, recipe, to=tmp_path_factory.mktemp(name) / target, format=name, allow_unquantized=True
        ).path
        for name, (recipe, target) in FORMATS.items()
    }


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_no_conversion_holds_the_largest_tensor(sources, source, target, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(stream, "CHUNK", 1 << 14)
    monkeypatch.setattr(stream, "AHEAD", 1 << 16)
    recipe, name = FORMATS[target]
    tracemalloc.start()
    try:
        edgekit.quantize(sources[source], recipe, to=tmp_path / name, format=target, allow_unquantized=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ALLOWED
