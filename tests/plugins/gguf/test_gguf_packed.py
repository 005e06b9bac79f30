"""Checkpoints that other libraries quantized, as GGUF: carried over where a type of ggml holds the same values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.bridges import carried_over
from edgekit.formats import safetensors
from edgekit.precision import find_precision
from edgekit.tensor import EncodedTensor

rng = np.random.default_rng(15)


def checkpoint(directory: Path, symmetric: bool, scale: str = "float16", bits: int = 4) -> Path:
    """The sample model, its projections packed as GPTQ packs them, in groups of 64."""
    source = edgekit.open(sample.path())
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in source.tensors.items():
        if not name.endswith("proj.weight"):
            tensors[name] = np.array(tensor.float32().reshape(tensor.shape))
            continue
        out, cols = tensor.shape
        module, fields = name.removesuffix(".weight"), 32 // bits
        zeros = (
            np.full((cols // 64, out), 1 << (bits - 1)) if symmetric else rng.integers(1, 1 << bits, (cols // 64, out))
        )
        codes = rng.integers(0, 1 << bits, (cols, out))
        shifts = (bits * np.arange(fields)).astype(np.uint32)
        words = (codes.reshape(-1, fields, out).astype(np.uint32) << shifts[:, None]).sum(1, dtype=np.uint32)
        stored = ((zeros - 1).reshape(cols // 64, -1, fields).astype(np.uint32) << shifts).sum(-1, dtype=np.uint32)
        tensors[f"{module}.qweight"], tensors[f"{module}.qzeros"] = words.view(np.int32), stored.view(np.int32)
        tensors[f"{module}.scales"] = rng.uniform(0.001, 0.01, zeros.shape).astype(scale)
    directory.mkdir()
    config = json.loads((sample.path() / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": bits, "group_size": 64}
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.write(directory / "model.safetensors", tensors)
    return directory


@pytest.mark.parametrize(
    ("bits", "symmetric", "expected"),
    [(4, True, "ggml:Q4_0"), (4, False, "ggml:Q5_0"), (2, True, "ggml:Q4_0"), (8, True, "ggml:Q8_0")],
)
def test_codes_are_carried_over(tmp_path: Path, bits: int, symmetric: bool, expected: str) -> None:
    """Into the smallest type that holds them; Llama's queries and keys with their rows in llama.cpp's order."""
    source = edgekit.open(checkpoint(tmp_path / "m", symmetric, bits=bits))
    written = edgekit.convert(source, tmp_path / "m.gguf")
    before, after = source.model.tensors, written.model.tensors
    for role, tensor in before.items():
        np.testing.assert_array_equal(after[role].float32(), tensor.float32())
        if isinstance(tensor, EncodedTensor):
            assert after[role].precision.name == expected
    count = sum(isinstance(tensor, EncodedTensor) for tensor in before.values())
    assert written.notes["carried"] == (
        f"{count} matrices carried over without changing a value ({count} affine:int{bits}-asym-g64 → {expected})"
    )
    assert not {"requantized", "decoded"} & written.notes.keys()


def test_what_no_type_holds_is_decoded_and_said(tmp_path: Path) -> None:
    source = edgekit.open(checkpoint(tmp_path / "m", True, scale="float32"))
    written = edgekit.convert(source, tmp_path / "m.gguf")
    for role, tensor in source.model.tensors.items():
        np.testing.assert_array_equal(written.model.tensors[role].float32(), tensor.float32())
        assert not isinstance(written.model.tensors[role], EncodedTensor)
    assert "quantized already" in written.notes["decoded"]
    assert "carried" not in written.notes


def test_another_type_quantizes_again_and_says_so(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", True)
    written = edgekit.quantize(source, "Q8_0", to=tmp_path / "m.gguf")
    assert "affine:int4-asym-g64) were quantized again" in written.notes["requantized"]
    same = edgekit.quantize(source, "Q4_0", to=tmp_path / "same.gguf")
    assert "affine:int4-asym-g64 → ggml:Q4_0" in same.notes["carried"]
    assert "requantized" not in same.notes


def test_the_sources_values_decide(tmp_path: Path) -> None:
    """A scale that is no float16 anywhere keeps a tensor from being carried over."""
    scale = np.full((3, 2), 0.5, np.float32)
    held = tensor_of(scale)
    found = carried_over(held, ("ggml",))
    assert found is not None
    assert (found.precision.name, found.origin) == ("ggml:Q4_0", held.precision)
    np.testing.assert_array_equal(found.float32(), held.float32())
    np.testing.assert_array_equal(found.float32(1, 2), held.float32(1, 2))
    scale[2, 1] = 0.1
    assert carried_over(tensor_of(scale), ("ggml",)) is None
    assert carried_over(held, ("float",)) is None


@pytest.mark.parametrize("cols", [64, 192])
@pytest.mark.parametrize("group", [16, 32, 64])
def test_small_floats_whose_scales_a_block_holds(group: int, cols: int) -> None:
    """NVFP4 with a second scale that is a power of two; any other is not carried over."""
    scale = np.full((3, cols // group), 0.375, np.float32)
    parts = {"codes": rng.integers(0, 256, (3, cols // 2), np.uint8), "scale": scale}
    precision = find_precision(f"packed:fp4-g{group}")
    held = EncodedTensor("t", (3, cols), precision, 0, lambda start, stop: {k: v[start:stop] for k, v in parts.items()})
    found = carried_over(held, ("ggml",))
    assert found is not None
    assert found.precision.name == "ggml:NVFP4"
    np.testing.assert_array_equal(found.float32(), held.float32())
    scale[1, 0] = 0.1
    assert carried_over(held, ("ggml",)) is None


@pytest.mark.parametrize("group", [32, 64, 128, 192])
def test_8_bit_floats_are_in_no_block(group: int) -> None:
    parts = {"codes": np.zeros((3, 192), np.uint8), "scale": np.ones((3, -(-192 // group)), np.float32)}
    precision = find_precision(f"packed:fp8-g{group}")
    held = EncodedTensor("t", (3, 192), precision, 0, lambda start, stop: {k: v[start:stop] for k, v in parts.items()})
    assert carried_over(held, ("ggml",)) is None


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("where", ["g32", "g48", "g64", "g96", "channel", "tensor"])
def test_every_affine_precision_is_carried_or_left(bits: int, where: str) -> None:
    """Whatever the group: the values are the same, or nothing holds them."""
    held = edgekit.encode(rng.normal(0, 1, (4, 192)), f"affine:int{bits}-asym-{where}")
    parts = {name: part.copy() for name, part in held.parts.items()}
    parts["scale"] = np.ldexp(np.float32(1), np.rint(np.log2(parts["scale"])).astype(int)).astype(np.float32)

    def read(start: int, stop: int) -> dict[str, np.ndarray]:
        return {name: part[start:stop] if len(part) == 4 else part for name, part in parts.items()}

    tensor = EncodedTensor("t", (4, 192), held.precision, 0, read)
    found = carried_over(tensor, ("ggml",))
    if found is not None:
        np.testing.assert_array_equal(found.float32(), tensor.float32())
    assert found is not None or bits > 7 or where == "g48"


def tensor_of(scale: np.ndarray) -> EncodedTensor:
    parts = {"codes": rng.integers(0, 256, (3, 32), np.uint8), "scale": scale}
    precision = find_precision("affine:int4-sym-g32")
    return EncodedTensor("t", (3, 64), precision, 0, lambda start, stop: {k: v[start:stop] for k, v in parts.items()})
