"""BERT as an encoder of texts (all-MiniLM, BGE, E5 …)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from edgekit.architectures._config import ModelConfig, check_config, integer_field, settings
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block, Encoder
from edgekit.architectures.decoder import Decoder, head_dim_of
from edgekit.architectures.links import Link, named, one
from edgekit.architectures.mixers import Attention, Plain
from edgekit.architectures.ops import Attend
from edgekit.tensor import AnyTensor

#: Hugging Face's names outside the layers.
TOP = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
#: Those inside a layer, after ``encoder.layer.N.``.
LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
#: Of a checkpoint with a head: the prefix of the encoder's tensors.
_WITH_HEAD = "bert."
#: Heads, which no embedding is made with.
HEADS = ("pooler.", "bert.pooler.", "cls.", "classifier.", "qa_outputs.")
#: LayerNorm's names in checkpoints of TensorFlow.
_OLD = {"weight": "gamma", "bias": "beta"}
_TYPES = "tokenizer.ggml.token_type_count"


@attrs.frozen(kw_only=True)
class Own:
    """What is BERT's own.

    Attributes:
        types: how many types of texts there are (first and second of a pair); edgekit encodes first ones.
    """

    types: int = integer_field(64, 1, default=2)


class Bert(Decoder):
    """BERT: attention to both sides, norms after the sums, learned positions."""

    name = "bert"
    model_types = ("bert",)
    hf_class = "BertModel"
    apart = "an encoder: attention to both sides, LayerNorm after each sum, learned positions"
    causal = False
    defaults = {  # noqa: RUF012
        "vocab_size": 30_522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "is_decoder": False,
        "position_embedding_type": "absolute",
    }
    gguf = Gguf("bert", untied=False, epsilon="attention.layer_norm_epsilon", rotates=False, states=("activation",))

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """See `Family.config_from_hf`."""
        c = Section({**self.defaults, **{key: config[key] for key in self.defaults if key in config}}, where)
        for key, allowed in (("is_decoder", False), ("position_embedding_type", "absolute"), ("hidden_act", "gelu")):
            if c.values[key] != allowed:
                c.refuse(key, c.values[key], f"{allowed!r} for BERT")
        heads = c.integer("num_attention_heads")
        head_dim = head_dim_of(c, heads)
        read = ModelConfig(
            family=self.name,
            layers=c.integer("num_hidden_layers"),
            width=c.integer("hidden_size"),
            heads=heads,
            kv_heads=heads,
            ffn=c.integer("intermediate_size"),
            vocab=c.integer("vocab_size"),
            context=c.integer("max_position_embeddings"),
            norm_eps=c.number("layer_norm_eps"),
            own={"types": c.integer("type_vocab_size")},
            **_fixed(head_dim),
        )
        return self.checked(check_config(read, where), where)

    def config_to_hf(self, config: ModelConfig) -> Fields:
        """See `Family.config_to_hf`."""
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_types[0],
            "hidden_size": config.width,
            "intermediate_size": config.ffn,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "vocab_size": config.vocab,
            "max_position_embeddings": config.context,
            "layer_norm_eps": config.norm_eps,
            "type_vocab_size": settings(Own, config).types,
            "hidden_act": "gelu",
        }

    def network(self, config: ModelConfig) -> Encoder:
        """See `Family.network`."""
        attention = Attention(
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=config.head_dim,
            how=Attend(config.attention_scale, causal=False),
            eps=config.norm_eps,
            bias=True,
            output_bias=True,
        )
        block = Block(
            attention,
            Plain(config.ffn, "gelu", bias=True),
            config.norm_eps,
            tokens_norm=None,
            tokens_post_norm="attn_output_norm",
            channels_norm=None,
            channels_post_norm="layer_output_norm",
            layer_norm=True,
            norms_sums=True,
        )
        return Encoder(
            vocab=config.vocab,
            width=config.width,
            blocks=(block,) * config.layers,
            eps=config.norm_eps,
            tied=True,
            positions=config.context,
            types=settings(Own, config).types,
        )

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Under ``bert.`` in a checkpoint with a head, and with TensorFlow's names of norms in old ones."""
        given = set(names)
        prefix = _WITH_HEAD if any(name.startswith(f"{_WITH_HEAD}embeddings.") for name in given) else ""
        found = []
        for name, _ in self.network(config).shapes():
            hf = prefix + self.hf_name(name)
            stem, _, kind = hf.rpartition(".")
            old = f"{stem}.{_OLD[kind]}"
            found.append(one(name, old if old in given else hf))
        return found

    def hf_name(self, name: str) -> str:
        """Hugging Face's name of a tensor."""
        return named(name, TOP, "encoder.layer", LAYER)

    def ignores(self, name: str) -> bool:
        """Heads, and positions as a buffer."""
        return name.startswith(HEADS) or name.endswith("embeddings.position_ids")

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """The number of types."""
        return {_TYPES: settings(Own, config).types}

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Sizes of the two further embeddings; the rest is the same for all files."""
        types = tensors["token_types.weight"].rows if "token_types.weight" in tensors else 1
        read = attrs.evolve(config, own={"types": types}, **_fixed(config.head_dim))
        return self.checked(read, keys.where)


def _fixed(head_dim: int) -> Fields:
    """What all models of the family have."""
    return {
        "head_dim": head_dim,
        "rotary_dim": head_dim - head_dim % 2,  # nothing rotates
        "rope_theta": 10_000.0,
        "attention_scale": head_dim**-0.5 if head_dim > 0 else 0.0,
        "activation": "gelu",
        "tied": True,
        "qkv_bias": True,
        "attn_output_bias": True,
        "ffn_bias": True,
        "causal": False,
    }


__all__ = ["Bert", "Own"]
