"""Small models with random weights that are equal on every machine, for tests of readers, writers and runtimes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from edgekit.architectures import Model, ModelConfig, tensor_shapes
from edgekit.architectures.hf import config_from_hf, hf_tensors
from edgekit.artifact import Artifact
from edgekit.tensor import Tensor
from edgekit.tokenizer._record import Tokenizer
from edgekit.typing import F32


def small_llama(**changes: object) -> ModelConfig:
    """Return the configuration of a Llama of two layers, with fewer key and value heads than heads.

    Args:
        changes: keys of its config.json to change or add, such as ``vocab_size=80``.
    """
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return config_from_hf(config | changes, "small_llama")


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, F32]:
    """Return random values of every tensor of a model, float32, by canonical name.

    Norms and biases are random too (not ones and zeros), so that a missing or misplaced one changes the logits. They
    are drawn from numpy's legacy random stream, which is frozen.
    """
    random = np.random.RandomState(seed)
    return {name: _draw(random, name, shape) for name, shape in tensor_shapes(config).items()}


def _draw(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> F32:
    values = random.standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.3 * values).astype(np.float32)
    if name.endswith(".bias"):
        return (0.3 * values).astype(np.float32)
    if name.endswith("ssm_a"):  # a decay rate must be negative
        return (-np.exp(values)).astype(np.float32)
    gain = 1.0 if name.startswith("token_embd") else 1.5 / math.sqrt(shape[-1])
    return (gain * values).astype(np.float32)


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """Return a model with `random_weights`, in memory."""
    return Model(config, {name: Tensor.of(name, values) for name, values in random_weights(config, seed).items()})


def random_hf_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return the same weights as in a Hugging Face directory: float32 tensors by Hugging Face's names."""
    written = hf_tensors(config, random_model(config, seed).tensors)
    return {name: Tensor.of(name, tensor.float32().reshape(tensor.shape)) for name, (_, tensor) in written.items()}


def artifact_of(model: Model, path: Path, tokenizer: Tokenizer | None = None) -> Artifact:
    """Return the model as an artifact with tensors in memory; `path` is a file that stands for the artifact's files."""
    return Artifact(
        path=path,
        format="memory",
        files=(path,) if path.exists() else (),
        config={},
        tensors=model.tensors,
        load_model=lambda: model,
        load_tokenizer=lambda: tokenizer,
    )


__all__ = ["artifact_of", "random_hf_tensors", "random_model", "random_weights", "small_llama"]
