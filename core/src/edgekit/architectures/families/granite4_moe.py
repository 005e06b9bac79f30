"""Granite 4 with experts and without Mamba: attention in every layer.

transformers computes it with the class of the hybrids; llama.cpp's files are those of Granite 3 with experts
(``granitemoe``), whose layers always have positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Section
from edgekit.architectures.families.granite import MULTIPLIER_KEYS, Granite
from edgekit.architectures.families.granite4_dense import Granite4Dense
from edgekit.architectures.families.granitemoehybrid import SHARED_FFN, attends_only
from edgekit.architectures.mixture import KEYS
from edgekit.errors import UnsupportedModelError


class Granite4Moe(Granite4Dense):
    """Granite 4 with attention, experts and an expert that all tokens use in every layer."""

    name = "granite4_moe"
    apart = "Granite 4 with experts and without Mamba; with positions, or without, which GGUF cannot say"
    gguf = Gguf(
        "granitemoe",
        interleaved=True,
        divisors=Granite.gguf.divisors,
        keys=(*MULTIPLIER_KEYS, *KEYS, Key("shared_ffn", SHARED_FFN)),
        states=("attention_scale", "embedding_scale"),
    )

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Where every layer attends and has experts."""
        return attends_only(config) and bool(config.get("num_local_experts"))

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Layers without positions are refused."""
        if not self.multipliers(config).rotates:
            raise UnsupportedModelError(
                "layers of the model have no positions (position_embedding_type), and llama.cpp rotates queries and "
                "keys of granitemoe files; choose another format"
            )
        return super().gguf_metadata(config)

    def gguf_fits(self, keys: Section) -> bool:
        """With the expert that all tokens use: Granite 3 has none."""
        return bool(keys.values.get(SHARED_FFN))

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """Layers that rotate."""
        return {**super().gguf_own(config, own), "rotates": True}


__all__ = ["Granite4Moe"]
