"""Qwen 2 and 2.5."""

from __future__ import annotations

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder

#: Of Qwen 2, and with a head size of Qwen 3.
QWEN: Fields = COMMON | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


class Qwen2(Decoder):
    """Qwen 2: biases on queries, keys and values."""

    name = "qwen2"
    model_types = ("qwen2",)
    hf_class = "Qwen2ForCausalLM"
    apart = "biases on Q, K and V; a window from some layer on"
    defaults = QWEN
    gguf = Gguf("qwen2", ignores_window=True)
    windows = "types"
    attention_biases = False
    alike: tuple[str, ...] = ("mistral", "llama")

    def biases(self, c: Section) -> Fields:
        """Always those."""
        return {"qkv_bias": True}

    def window_used(self, c: Section) -> bool:
        """There is a switch beside the window."""
        return c.flag("use_sliding_window")

    def sliding_by_default(self, c: Section, layers: int) -> list[bool]:
        """From some layer on."""
        return [layer >= c.integer("max_window_layers") for layer in range(layers)]

    def windows_to_hf(self, config: ModelConfig) -> Fields:
        """The window with its switch."""
        written = super().windows_to_hf(config)
        full = sum(name == "full_attention" for name in written["layer_types"])
        return written | {"use_sliding_window": config.sliding_window is not None, "max_window_layers": full}


__all__ = ["QWEN", "Qwen2"]
