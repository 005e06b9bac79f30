"""Gemma, the first."""

from __future__ import annotations

import math

from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder

GEMMA: Fields = COMMON | {
    "vocab_size": 256_000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
}


class Gemma(Decoder):
    """Gemma: GeGLU, embeddings times the square root of the width, norm weights stored less one."""

    name = "gemma"
    model_types: tuple[str, ...] = ("gemma",)
    hf_class = "GemmaForCausalLM"
    apart = "GeGLU, scaled embeddings, norm weights stored less one"
    defaults = GEMMA | {
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_activation": None,
        "hidden_act": "gelu_pytorch_tanh",
    }
    gguf = Gguf("gemma", gelu=True, untied=False, biases=False)
    norm_offset = 1.0
    tanh_names: tuple[str, ...] = ("gelu",)  # the first release says so and means the approximation

    def embedding_scale(self, c: Section, width: int) -> float:
        """The square root of the width."""
        return math.sqrt(max(width, 0))

    def activation_to_hf(self, name: str) -> Fields:
        """Under its old and its new name."""
        return {"hidden_act": name, "hidden_activation": name}


__all__ = ["GEMMA", "Gemma"]
