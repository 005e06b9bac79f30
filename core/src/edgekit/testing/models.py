"""Small models with random weights, the same on every machine, to test readers, writers and runtimes with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from edgekit.architectures import Model, ModelConfig, tensor_shapes
from edgekit.architectures.hf import hf_tensors
from edgekit.artifact import Artifact
from edgekit.tensor import Tensor
from edgekit.tokenizer._record import Tokenizer
from edgekit.typing import F32


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, F32]:
    """Canonical values of every tensor, by canonical name.

    Norms and biases are random as well (not ones and zeros), so that a forgotten or misplaced one shows.
    The stream is numpy's legacy one, which is frozen.
    """
    random = np.random.RandomState(seed)
    return {name: _draw(random, name, shape) for name, shape in tensor_shapes(config).items()}


def _draw(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> F32:
    values = random.standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.3 * values).astype(np.float32)
    if name.endswith(".bias"):
        return (0.3 * values).astype(np.float32)
    if name.endswith("ssm_a"):  # a decay rate: below 0
        return (-np.exp(values)).astype(np.float32)
    gain = 1.0 if name.startswith("token_embd") else 1.5 / math.sqrt(shape[-1])
    return (gain * values).astype(np.float32)


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """The model with `random_weights`, in memory."""
    return Model(config, {name: Tensor.of(name, values) for name, values in random_weights(config, seed).items()})


def random_hf_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """The same weights as a Hugging Face directory holds them, by Hugging Face's names, in float32."""
    written = hf_tensors(config, random_model(config, seed).tensors)
    return {name: Tensor.of(name, tensor.float32().reshape(tensor.shape)) for name, (_, tensor) in written.items()}


def artifact_of(model: Model, path: Path, tokenizer: Tokenizer | None = None) -> Artifact:
    """The model as an artifact whose tensors lie in memory; `path` is a file that stands for its size."""
    return Artifact(
        path=path,
        format="memory",
        files=(path,) if path.exists() else (),
        config={},
        tensors=model.tensors,
        load_model=lambda: model,
        load_tokenizer=lambda: tokenizer,
    )


__all__ = ["artifact_of", "random_hf_tensors", "random_model", "random_weights"]
