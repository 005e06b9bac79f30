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


#: Three groups of 4 bits a row, so that the zero points of two rows share a byte, and an odd number of rows.
ODD_ROWS, ODD_WIDTH = (1 << 16) + 1, 96
#: Of 25 MB of float32 values: the graph and its tokenizer take 13 MB, a tensor that is held as a whole 29 to 41 MB.
ODD_ALLOWED = 4 * ODD_ROWS * ODD_WIDTH * 3 // 4
#: Source -> recipe and format of what is made of it.
ODD = [
    ("plain", "openvino:int4-asym-g32", "openvino"),
    ("plain", "openvino:int3-sym-channel", "openvino"),
    ("plain", "openvino:nf4-channel", "openvino"),
    ("hf", "openvino:int4-asym-g32", "openvino"),
    ("openvino", "openvino:int4-asym-g32", "openvino"),
    ("openvino", "affine:int4-asym-g32", "hf"),
]


@pytest.fixture(scope="module")
def odd_sources(tmp_path_factory):
    """A model whose rows share bytes in IR: plain, and encoded in two formats."""
    folder = tmp_path_factory.mktemp("odd")
    small = small_llama(hidden_size=ODD_WIDTH, intermediate_size=ODD_WIDTH, head_dim=32)
    model = artifact_of(random_model(attrs.evolve(small, vocab=ODD_ROWS)), folder / "memory")
    edgekit.convert(model, folder / "plain")
    for name, recipe in (("hf", "affine:int4-asym-g32"), ("openvino", "openvino:int4-asym-g32")):
        edgekit.quantize(folder / "plain", recipe, to=folder / name, format=name)
    return folder


@pytest.mark.parametrize(("source", "recipe", "target"), ODD)
def test_rows_that_share_a_byte_stream_and_have_the_bytes_of_whole_tensors(
    odd_sources, source, recipe, target, tmp_path, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def written(name, chunk):
        monkeypatch.setattr(stream, "CHUNK", chunk)
        monkeypatch.setattr(stream, "AHEAD", 4 * chunk)
        tracemalloc.start()
        try:
            edgekit.quantize(odd_sources / source, recipe, to=tmp_path / name, format=target)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        weights = "openvino_model.bin" if target == "openvino" else "model.safetensors"
        return (tmp_path / name / weights).read_bytes(), peak

    whole, _ = written("whole", ODD_ROWS * ODD_WIDTH)
    in_rows, peak = written("rows", 1 << 13)
    assert in_rows == whole
    assert peak < ODD_ALLOWED
