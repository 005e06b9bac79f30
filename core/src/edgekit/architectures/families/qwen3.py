"""Qwen 3, dense."""

from __future__ import annotations

from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import Decoder
from edgekit.architectures.families.qwen2 import QWEN, Qwen2


class Qwen3(Qwen2):
    """Qwen 3: queries and keys normalized head by head, no biases unless asked for."""

    name = "qwen3"
    model_types = ("qwen3",)
    hf_class = "Qwen3ForCausalLM"
    apart = "queries and keys normalized head by head; optional biases"
    defaults = QWEN | {"head_dim": 128}
    gguf = Gguf("qwen3", biases=False, ignores_window=True)
    qk_norm = True
    attention_biases = True
    alike = ()

    def biases(self, c: Section) -> Fields:
        """All of attention's, or none."""
        return Decoder.biases(self, c)


__all__ = ["Qwen3"]
