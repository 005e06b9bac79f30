"""OLMoE."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._section import Section
from edgekit.architectures.decoder import COMMON
from edgekit.architectures.mixers import Mixer
from edgekit.architectures.mixture import KEYS, Mixture
from edgekit.architectures.rope import Rope
from edgekit.errors import UnsupportedModelError


class Olmoe(Mixture):
    """OLMoE: queries and keys normalized as whole vectors; the weights of experts are not normalized."""

    name = "olmoe"
    model_types = ("olmoe",)
    hf_class = "OlmoeForCausalLM"
    apart = "experts in every layer; queries and keys normalized as whole vectors"
    defaults = COMMON | {
        "vocab_size": 50_304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "clip_qkv": None,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "num_local_experts": None,
        "norm_topk_prob": False,
    }
    gguf = Gguf("olmoe", ties=False, biases=False, keys=KEYS)
    whole_heads = True
    ffn_key = "intermediate_size"
    normalized = False
    normalized_key = "norm_topk_prob"

    def refuse(self, c: Section) -> None:
        """Clipped queries, keys and values."""
        super().refuse(c)
        if c.values["clip_qkv"] is not None:
            c.refuse("clip_qkv", c.values["clip_qkv"], "null")

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """Attention with both norms over all heads."""
        return attrs.evolve(self.attention(config, layer, rope), norm="all")

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """llama.cpp takes the keys' norm to be as wide as the queries'."""
        if config.kv_heads != config.heads:
            raise UnsupportedModelError(
                f"num_key_value_heads of the model is {config.kv_heads}, and llama.cpp loads olmoe files only with as "
                f"many as heads, {config.heads}; choose another format"
            )
        return super().gguf_metadata(config)


__all__ = ["Olmoe"]
