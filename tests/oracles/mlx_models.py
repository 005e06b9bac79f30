"""Small random models for what runs with MLX: every family that mlx-lm computes as edgekit's forward pass does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs

import edgekit
from edgekit.architectures import ModelConfig, RopeScaling
from edgekit.artifact import Artifact
from edgekit.testing.models import artifact_of, random_model

BASE = ModelConfig(
    family="llama", layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=128, context=96,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.25, rotary_dim=16,
)  # fmt: skip
_GEMMA: dict[str, Any] = {"activation": "gelu_tanh", "embedding_scale": 8.0, "tied": True}
_LLAMA3 = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)
_YARN = RopeScaling("yarn", 4.0, original_context=32, attention_factor=0.1 * math.log(4) + 1)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tied": True},
    "llama, with biases": {"qkv_bias": True, "attn_output_bias": True, "ffn_bias": True},
    "llama, linear": {"rope_scaling": RopeScaling("linear", 4.0)},
    "llama, llama3": {"rope_scaling": _LLAMA3},
    "llama, yarn": {"rope_scaling": _YARN},
    "llama, wide heads": {"head_dim": 32, "rotary_dim": 32, "attention_scale": 32**-0.5},
    "mistral": {"family": "mistral"},
    "mistral, window": {"family": "mistral", "sliding_window": 48},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "rope_theta": 1e6},
    "qwen3": {"family": "qwen3", "head_dim": 32, "rotary_dim": 32, "attention_scale": 32**-0.5},
    "qwen3, yarn": {"family": "qwen3", "rope_scaling": _YARN},
    "phi3": {"family": "phi3", "sliding_window": 96},
    "phi3, half of each head": {"family": "phi3", "rotary_dim": 8},
    "gemma": {"family": "gemma", **_GEMMA},
    "gemma2": {
        "family": "gemma2", **_GEMMA, "sliding_window": 48, "full_attention_every": 2, "attention_softcap": 50.0,
        "output_softcap": 25.0, "attention_scale": 24**-0.5,
    },
    "gemma3": {
        "family": "gemma3", **_GEMMA, "layers": 6, "sliding_window": 8, "full_attention_every": 3,
        "rope_theta_local": 10000.0, "rope_theta": 1e6,
    },
    "gemma3, linear": {
        "family": "gemma3", **_GEMMA, "layers": 6, "sliding_window": 8, "full_attention_every": 6,
        "rope_theta_local": 10000.0, "rope_theta": 1e6, "rope_scaling": RopeScaling("linear", 8.0),
    },
}  # fmt: skip

#: What mlx-lm would load and compute otherwise, and why it is refused.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "longrope": (
        {"family": "phi3", "rope_scaling": RopeScaling(
            "longrope", 2.0, original_context=32, attention_factor=1.25, long_factors=(2.0,) * 8,
            short_factors=(1.0,) * 8)},
        "longrope's long factors",
    ),
    "part of a head": ({"rotary_dim": 8}, "only 8 of 16 elements of a head rotate"),
    "another yarn": ({"rope_scaling": attrs.evolve(_YARN, attention_factor=1.0)}, "yarn's attention factor 1 is not"),
    "dynamic": ({"rope_scaling": RopeScaling("dynamic", 2.0, original_context=32)}, "begins at the model's context"),
    "qwen3 with biases": ({"family": "qwen3", "qkv_bias": True}, "its qwen3 has no such biases"),
    "gemma, not tied": ({"family": "gemma", **_GEMMA, "tied": False}, "has no output matrix of its own"),
}  # fmt: skip


def config_of(name: str) -> ModelConfig:
    return attrs.evolve(BASE, **FAMILIES[name])


def write(name: str, folder: Path, seed: int = 0) -> Artifact:
    """The model as an MLX directory, float32."""
    source = artifact_of(random_model(config_of(name), seed), folder / "memory")
    return edgekit.convert(source, folder / "model", format="mlx")
