"""Gemma 3: its text models, and the language model of its multimodal ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._hf_rope import RopeDialect
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.families.gemma2 import GEMMA2, Gemma2


class Gemma3(Gemma2):
    """Gemma 3: queries and keys normalized, a rotary base of their own for layers with a window."""

    name = "gemma3"
    model_types: tuple[str, ...] = ("gemma3_text", "gemma3")
    hf_class = "Gemma3ForCausalLM"
    apart = "and: queries and keys normalized, a rotary base of their own for layers with a window"
    defaults = GEMMA2 | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    }
    gguf = Gguf(
        "gemma3", gelu=True, biases=False, window_period=6, caps_output=True, wide_layers=62, local_theta=10_000.0
    )
    nested = True
    rope = RopeDialect(local=True)
    qk_norm = True

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Where no token sees those after it; else it is EmbeddingGemma."""
        return not config.get("use_bidirectional_attention")

    def refuse(self, c: Section) -> None:
        """Transformers stores a cap of the scores for Gemma 3 and does not apply it."""
        super().refuse(c)
        if c.values["attn_logit_softcapping"] is not None:
            c.refuse("attn_logit_softcapping", c.values["attn_logit_softcapping"], "null for Gemma 3")

    def sliding_by_default(self, c: Section, layers: int) -> list[bool]:
        """All but every n-th."""
        every = max(1, c.integer("sliding_window_pattern"))
        return [(layer + 1) % every != 0 for layer in range(layers)]

    def windows_to_hf(self, config: ModelConfig) -> Fields:
        """With the period, which transformers 4 reads."""
        period = {"sliding_window_pattern": config.full_attention_every} if config.full_attention_every else {}
        return super().windows_to_hf(config) | period


__all__ = ["Gemma3"]
