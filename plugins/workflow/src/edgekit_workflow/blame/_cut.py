"""Models that are cut after their first layers, in their own format and with the same codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs

import edgekit
from edgekit.architectures import Model, ModelConfig
from edgekit.artifact import Artifact

_LAYER = re.compile(r"blk\.(\d+)\.")


def cut(artifact: Artifact, layers: int, folder: Path) -> Artifact:
    """Write a model's first layers with its embedding and its output, as an artifact of the same format.

    Args:
        artifact: of a supported family.
        layers: how many, at least 1.
        folder: to write in.

    Raises:
        As `edgekit.convert`.
    """
    model = artifact.model
    kept = {name: tensor for name, tensor in model.tensors.items() if _layer(name) < layers}
    part = Model(_shorter(model.config, layers), kept)
    in_memory = Artifact(
        path=folder / "source",
        format="memory",
        files=(),
        config={},
        tensors=kept,
        load_model=lambda: part,
        load_tokenizer=artifact.load_tokenizer,
    )
    suffix = artifact.path.suffix if artifact.path.is_file() else ""
    return edgekit.convert(in_memory, folder / f"cut{suffix}", format=artifact.format)


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _shorter(config: ModelConfig, layers: int) -> ModelConfig:
    """The configuration of the first layers; what it lists for each layer is cut too."""
    own: Mapping[str, object] = {
        name: value[:layers] if isinstance(value, tuple) and len(value) == config.layers else value
        for name, value in config.own.items()
    }
    return attrs.evolve(config, layers=layers, own=own)


__all__ = ["cut"]
