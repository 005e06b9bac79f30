"""Mistral 7B and what followed it under the same class."""

from __future__ import annotations

from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder
from edgekit.architectures.families.llama import Llama


class Mistral(Decoder):
    """Mistral: Llama without biases, with a sliding window in every layer or in none."""

    name = "mistral"
    model_types = ("mistral",)
    hf_class = "MistralForCausalLM"
    apart = "a sliding window in every layer"
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

    def biases(self, c: Section) -> Fields:
        """Transformers builds it without, whatever the file says."""
        return {}

    def gguf_fits(self, keys: Section) -> bool:
        """A Llama with a window."""
        return super().gguf_fits(keys) and bool(keys.values.get("attention.sliding_window"))


__all__ = ["Mistral"]
