"""GGUF to MLX and back, OpenVINO and MatMulNBits to MLX: codes carried over, 0 ULP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlx_models import BASE

import edgekit
from edgekit.precision import find_precision
from edgekit.recipe import Recipe
from edgekit.tensor import EncodedTensor
from edgekit.testing.models import artifact_of, random_model


def names(artifact) -> dict[str, str]:
    return {n: t.precision.name if isinstance(t, EncodedTensor) else t.dtype for n, t in artifact.tensors.items()}


def assert_same_values(one, other):
    for role, tensor in one.model.tensors.items():
        np.testing.assert_array_equal(tensor.float32(), other.model.tensors[role].float32(), err_msg=role)


@pytest.mark.parametrize("recipe", ["Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1", "MXFP4"])
def test_gguf_and_back(recipe, tmp_path):
    source = artifact_of(random_model(BASE), tmp_path / "memory")
    rules = Recipe.of({"*": f"ggml:{recipe}"}, name=recipe)
    first = edgekit.quantize(source, rules, to=tmp_path / "first.gguf")
    mlx = edgekit.convert(first, tmp_path / "mlx", format="mlx")
    assert all(isinstance(t, EncodedTensor) for t in mlx.tensors.values() if len(t.shape) > 1)
    assert_same_values(first, mlx)
    again = edgekit.convert(mlx, tmp_path / "again.gguf")
    assert names(again) == names(first)
    for name, tensor in first.tensors.items():
        if isinstance(tensor, EncodedTensor):
            assert tensor.read().parts["blocks"].tobytes() == again.tensors[name].read().parts["blocks"].tobytes(), name
    assert_same_values(first, again)


def test_stories_in_q4_0_to_mlx_to_gguf(stories: Path, tmp_path: Path):
    """Every dequantized weight equal, the same blocks, the same greedy text from three runtimes."""
    first = edgekit.quantize(stories, "Q4_0", to=tmp_path / "first.gguf")
    mlx = edgekit.convert(first, tmp_path / "mlx", format="mlx")
    again = edgekit.convert(mlx, tmp_path / "again.gguf")
    assert names(again) == names(first)
    assert list(names(first).values()).count("ggml:Q4_0") == 31
    assert_same_values(first, mlx)
    for name, tensor in first.tensors.items():
        other = again.tensors[name]
        np.testing.assert_array_equal(tensor.float32(), other.float32(), err_msg=name)
        if isinstance(tensor, EncodedTensor):
            assert tensor.read().parts["blocks"].tobytes() == other.read().parts["blocks"].tobytes(), name
    texts = set()
    for artifact, runtime in ((first, "numpy"), (mlx, "mlx"), (mlx, "numpy"), (again, "numpy"), (again, "llamacpp")):
        with edgekit.load(artifact, runtime) as model:
            texts.add(model.generate("Once upon a time", max_tokens=40))
    assert len(texts) == 1


@pytest.mark.parametrize(
    "precision", ["openvino:int4-sym-g32", "openvino:int4-asym-g32", "onnx:int4-sym-g32", "onnx:int8-asym-g32"]
)
def test_groups_of_others_keep_their_codes(precision, tmp_path):
    """From float16, whose scales have 11 bits: a product of 24 bits with a code would be rounded in float32."""
    source = artifact_of(random_model(BASE, 3), tmp_path / "memory")
    half = edgekit.convert(source, tmp_path / "half", dtype="F16")
    first = edgekit.quantize(half, find_precision(precision), to=tmp_path / "first")
    mlx = edgekit.convert(first, tmp_path / "mlx", format="mlx")
    kinds = {t.precision.name for t in mlx.tensors.values() if isinstance(t, EncodedTensor)}
    assert kinds == {f"mlx:int{find_precision(precision).bits}-g32"}
    assert all(isinstance(t, EncodedTensor) for t in mlx.tensors.values() if len(t.shape) > 1)
    assert_same_values(first, mlx)


def test_scales_of_24_bits_are_decoded_and_not_rounded(tmp_path):
    source = artifact_of(random_model(BASE, 3), tmp_path / "memory")
    first = edgekit.quantize(source, "onnx:int4-sym-g32", to=tmp_path / "first")
    said: list[str] = []
    mlx = edgekit.convert(first, tmp_path / "mlx", format="mlx", notes=said)
    assert any("16 matrices quantized already (16 onnx:int4-sym-g32) were decoded to floats" in note for note in said)
    assert_same_values(first, mlx)


def test_k_quants_are_decoded_and_that_is_said(tmp_path):
    source = artifact_of(random_model(BASE, 3), tmp_path / "memory")
    first = edgekit.quantize(source, Recipe.of({"*": "ggml:IQ4_NL"}), to=tmp_path / "first.gguf")
    said: list[str] = []
    mlx = edgekit.convert(first, tmp_path / "mlx", format="mlx", notes=said)
    assert any("16 matrices quantized already (16 ggml:IQ4_NL) were decoded to floats" in note for note in said)
    assert_same_values(first, mlx)
    said.clear()
    edgekit.quantize(first, "int4-g32", to=tmp_path / "small", format="mlx", notes=said)
    assert any("quantized already (16 ggml:IQ4_NL) were quantized again" in note for note in said)


def test_to_a_hugging_face_directory_and_to_openvino(tmp_path):
    """config.json says nothing there of MLX's packed weights."""
    source = artifact_of(random_model(BASE, 3), tmp_path / "memory")
    mlx = edgekit.quantize(source, "int4-g32", to=tmp_path / "mlx", format="mlx")
    floats = edgekit.convert(mlx, tmp_path / "hf", dtype="F32")
    again = edgekit.open(floats.path)
    assert (again.format, "quantization" in again.config, "quantization_config" in again.config) == ("hf", False, False)
    assert_same_values(mlx, again)
    parts = edgekit.convert(mlx, tmp_path / "parts")
    assert_same_values(mlx, edgekit.open(parts.path))
    ir = edgekit.convert(mlx, tmp_path / "ir", format="openvino", dtype="F32")
    assert_same_values(mlx, edgekit.open(ir.path))
