"""Llama 1 to 3, and Code Llama."""

from __future__ import annotations

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder

_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class Llama(Decoder):
    """Llama."""

    name = "llama"
    model_types = ("llama",)
    hf_class = "LlamaForCausalLM"
    apart = "optional biases on attention and feed-forward"
    defaults = COMMON | {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048}
    gguf = Gguf("llama", interleaved=True, divisors=_ROPE_TENSORS, ignores_window=True)
    whole_heads = True
    # They compute alike but for what their classes allow: Llama has all biases or none, Mistral none, Qwen 2 those of
    # queries, keys and values; Mistral and Qwen 2 have sliding windows, and any width.
    alike = ("mistral", "qwen2")

    def biases(self, c: Section) -> Fields:
        """All of attention's or none, all of the feed-forward network's or none."""
        return {**super().biases(c), "ffn_bias": c.flag("mlp_bias")}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """The two flags."""
        return {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}

    def gguf_fits(self, keys: Section) -> bool:
        """Files of Llama have neither a window nor experts; Mistral and Mixtral share the architecture."""
        return super().gguf_fits(keys) and not keys.values.get("attention.sliding_window")


__all__ = ["Llama"]
