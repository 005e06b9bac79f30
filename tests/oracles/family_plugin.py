"""A model family as a plugin brings it: Seed-OSS, which the core does not have, in one file."""

import edgekit
from edgekit.architectures import Gguf
from edgekit.architectures.blocks import Block
from edgekit.architectures.decoder import COMMON, LAYER, Decoder

edgekit_api = (1, 0)


@edgekit.hookimpl
def edgekit_register_families(register):
    """Register the family."""
    register("seed_oss", "family_plugin:SeedOss")


class SeedOss(Decoder):
    """A Llama with biases on queries, keys and values, and on attention's output if asked for."""

    name = "seed_oss"
    model_types = ("seed_oss",)
    hf_class = "SeedOssForCausalLM"
    apart = "biases on Q, K and V, and on the output by a flag of its own"
    defaults = COMMON | {
        "vocab_size": 155_136,
        "hidden_size": 4096,
        "intermediate_size": 27_648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524_288,
        "attention_bias": True,
        "attention_out_bias": False,
    }
    # In GGUF the norm before the feed-forward network has the name that others use after attention.
    gguf = Gguf("seed_oss")
    layer_names = LAYER | {"post_attention_norm": "post_attention_layernorm"}

    def biases(self, c):
        return {
            "qkv_bias": c.flag("attention_bias"),
            "attn_output_bias": c.flag("attention_out_bias"),
            "ffn_bias": c.flag("mlp_bias"),
        }

    def own_to_hf(self, config):
        return {
            "attention_bias": config.qkv_bias,
            "attention_out_bias": config.attn_output_bias,
            "mlp_bias": config.ffn_bias,
        }

    def block(self, config, layer, ropes):
        return Block(
            self.tokens(config, layer, ropes[False]),
            self.channels(config, layer),
            config.norm_eps,
            channels_norm="post_attention_norm",
        )

    def gguf_metadata(self, config):
        if config.attn_output_bias or config.ffn_bias:
            raise edgekit.errors.UnsupportedModelError(
                "llama.cpp has no biases on the output and the feed-forward network of seed_oss models"
            )
        return super().gguf_metadata(config)
