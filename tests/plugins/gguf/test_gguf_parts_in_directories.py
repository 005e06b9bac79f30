"""Formats that can only be decoded are carried into a Hugging Face directory block by block."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError
from edgekit.formats import safetensors
from edgekit.precision import find_precision
from edgekit.tensor import EncodedTensor

NAME, SHAPE = "dense.weight", (24, 512)


@pytest.fixture(scope="module", params=["ggml:IQ2_XXS", "ggml:IQ1_M", "ggml:IQ3_S"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of one tensor in random blocks."""
    precision = find_precision(request.param)
    assert precision.block is not None
    width = int(SHAPE[1] * precision.bits_per_weight) // 8
    blocks = np.random.default_rng(0).integers(0, 256, (SHAPE[0], width), np.uint8)
    blocks[:, :2] = (0, 60)  # a scale of 1, where the format has one in front
    tensor = EncodedTensor(NAME, SHAPE, precision, blocks.nbytes, lambda start, stop: {"blocks": blocks[start:stop]})
    directory = tmp_path_factory.mktemp("source")
    (directory / "config.json").write_text('{"model_type": "bert"}')

    def none() -> None:
        return None

    def no_model() -> edgekit.architectures.Model:
        raise edgekit.errors.UnsupportedModelError("bert")

    return Artifact(directory, "hf", (directory / "config.json",), {}, {NAME: tensor}, no_model, none)


def test_blocks_come_back(source: Artifact, tmp_path: Path) -> None:
    written = edgekit.convert(source, tmp_path / "m").tensors[NAME]
    before = source.tensors[NAME]
    assert isinstance(written, EncodedTensor)
    assert isinstance(before, EncodedTensor)
    assert (written.precision, written.shape, written.nbytes) == (before.precision, before.shape, before.nbytes)
    np.testing.assert_array_equal(written.read().parts["blocks"], before.read().parts["blocks"], strict=True)
    np.testing.assert_array_equal(written.float32(5, 9), before.float32()[5:9])


@pytest.mark.parametrize("shape", [(12, 1024), (24, 256), (1, 512)])
def test_blocks_of_another_shape_are_refused(source: Artifact, tmp_path: Path, shape: tuple[int, ...]) -> None:
    edgekit.convert(source, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors, metadata = safetensors.open_tensors(path)
    described = json.loads(metadata["edgekit"])
    described["tensors"][NAME]["shape"] = list(shape)
    safetensors.write(path, {n: t.read() for n, t in tensors.items()}, {"edgekit": json.dumps(described)})
    with pytest.raises(InvalidFileError, match=r"part blocks has shape \[\d+, \d+\], ggml:\w+ takes \["):
        edgekit.open(tmp_path / "m")
