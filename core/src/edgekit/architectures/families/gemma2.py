"""Gemma 2."""

from __future__ import annotations

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import LAYER, pre_attention_scalar
from edgekit.architectures.families.gemma import GEMMA, Gemma

GEMMA2: Fields = GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
POST_NORMS = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class Gemma2(Gemma):
    """Gemma 2: soft caps, norms after attention and feed-forward, a window in every other layer."""

    name = "gemma2"
    model_types: tuple[str, ...] = ("gemma2",)
    hf_class = "Gemma2ForCausalLM"
    apart = "and: soft caps, norms after attention and feed-forward, a window in every other layer"
    defaults = GEMMA2
    gguf = Gguf(
        "gemma2",
        gelu=True,
        untied=False,
        biases=False,
        window_period=2,
        window=4096,
        softcaps=(50.0, 30.0),
        caps_output=True,
        wide_layers=46,
    )
    layer_names = POST_NORMS
    post_norms = True
    windows = "types"
    whole_heads = True
    tanh_names = ()

    def sliding_by_default(self, c: Section, layers: int) -> list[bool]:
        """Every other layer."""
        return [(layer + 1) % 2 != 0 for layer in range(layers)]

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Scale and caps."""
        local = {} if config.rope_theta_local is None else {"rope_local_base_freq": config.rope_theta_local}
        return {
            "attention_bias": config.qkv_bias,
            "query_pre_attn_scalar": pre_attention_scalar(config.attention_scale),
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.output_softcap,
            **local,
        }


__all__ = ["GEMMA2", "POST_NORMS", "Gemma2"]
