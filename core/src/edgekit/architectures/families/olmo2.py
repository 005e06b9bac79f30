"""OLMo 2."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures.blocks import Block
from edgekit.architectures.decoder import COMMON, LAYER, Decoder
from edgekit.architectures.rope import Rope


class Olmo2(Decoder):
    """OLMo 2: norms after attention and feed-forward only; queries and keys normalized as whole vectors."""

    name = "olmo2"
    model_types = ("olmo2",)
    hf_class = "Olmo2ForCausalLM"
    apart = "norms after the mixers instead of before; queries and keys normalized as whole vectors"
    defaults = COMMON | {
        "vocab_size": 50_304,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    gguf = Gguf("olmo2", ties=False, biases=False)
    whole_heads = True
    layer_names = LAYER | {
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """No norms before the mixers."""
        return Block(
            attrs.evolve(self.attention(config, layer, ropes[False]), norm="all"),
            self.channels(config, layer),
            config.norm_eps,
            tokens_norm=None,
            tokens_post_norm="post_attention_norm",
            channels_norm=None,
            channels_post_norm="post_ffw_norm",
        )


__all__ = ["Olmo2"]
