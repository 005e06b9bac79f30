"""Granite 4 without Mamba and without experts (350M, 1B, Micro): attention in every layer.

transformers computes it with the class of the hybrids; llama.cpp's files are those of Granite 3, whose layers may have
no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Section
from edgekit.architectures.families.granite import MULTIPLIER_KEYS, ROTATES, Granite, Multiplied
from edgekit.architectures.families.granitemoehybrid import GraniteMoeHybrid, attends_only
from edgekit.tensor import AnyTensor

#: Sizes of the Mamba layers that such a model does not have, which transformers' class wants all the same.
_NO_MAMBA = {
    "mamba_heads": 1,
    "groups": 1,
    "state": 256,
    "taps": 4,
    "conv_bias": True,
    "proj_bias": False,
    "experts": 0,
    "experts_used": 0,
    "shared_ffn": 0,
}


class Granite4Dense(GraniteMoeHybrid):
    """Granite 4 with attention and a dense network in every layer."""

    name = "granite4_dense"
    apart = "Granite 4 without Mamba and experts; with positions or without"
    gguf = Gguf(
        "granite",
        interleaved=True,
        divisors=Granite.gguf.divisors,
        keys=(*MULTIPLIER_KEYS, Key("rotates", ROTATES, True)),
        states=("attention_scale", "embedding_scale"),
    )

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Where every layer attends, and none has experts."""
        return attends_only(config) and not config.get("num_local_experts")

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """The multipliers, and whether layers have positions."""
        return Multiplied.gguf_metadata(self, config)

    def gguf_fits(self, keys: Section) -> bool:
        """A Granite without positions: with them the file is Granite 3's, which computes the same."""
        return not keys.values.get("expert_count") and keys.values.get(ROTATES, True) is not True

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Which have biases, by any layer's."""
        config = Multiplied.gguf_config(self, config, keys, tensors)
        queries, output = (any(name.endswith(f"{role}.bias") for name in tensors) for role in ("attn_q", "attn_output"))
        return attrs.evolve(config, qkv_bias=queries, attn_output_bias=output)

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """Layers without Mamba."""
        return {**_NO_MAMBA, **own, "recurrent": (False,) * config.layers, "mamba_head_dim": 2 * config.width}


__all__ = ["Granite4Dense"]
