"""Mistral 7B and what followed it under the same class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder
from edgekit.architectures.families.llama import Llama


def text_type(config: Mapping[str, Any]) -> object:
    """The ``model_type`` of the language model of a multimodal one; transformers takes mistral where it is missing."""
    text = config.get("text_config")
    return text.get("model_type", "mistral") if isinstance(text, Mapping) else None


class Mistral(Decoder):
    """Mistral: Llama without biases, with a sliding window in every layer or in none."""

    name = "mistral"
    model_types = ("mistral", "mistral3")
    hf_class = "MistralForCausalLM"
    apart = "a sliding window in every layer; the language model of multimodal ones"
    defaults = COMMON | {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    }
    gguf = Llama.gguf
    windows = "all"
    attention_biases = False
    alike = ("qwen2", "llama")
    nested = True

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Of a multimodal model (Mistral Small 3) where its language model is of this family."""
        return config.get("model_type") != "mistral3" or text_type(config) == "mistral"

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """Of a multimodal model its language model, if edgekit knows it."""
        if config.get("model_type", "mistral") != "mistral":
            Section(config, where).refuse(
                "model_type of text_config", config["model_type"], "mistral and ministral3 there"
            )
        return super().config_from_hf(config, where)

    def biases(self, c: Section) -> Fields:
        """Transformers builds it without, whatever the file says."""
        return {}

    def gguf_fits(self, keys: Section) -> bool:
        """A Llama with a window."""
        return super().gguf_fits(keys) and bool(keys.values.get("attention.sliding_window"))


__all__ = ["Mistral", "text_type"]
