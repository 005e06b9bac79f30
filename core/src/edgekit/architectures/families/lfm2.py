"""LFM2, dense: short convolutions, and attention in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Network
from edgekit.architectures.decoder import COMMON, LAYER, Decoder, layer_types
from edgekit.architectures.links import Link, mapped, reshaped
from edgekit.architectures.mixers import Mixer, ShortConvolution
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

#: The kinds of layers, as ``layer_types`` names them.
KINDS = ("full_attention", "conv")
CONVOLVING: Fields = {
    "rope_theta": 1_000_000.0,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "tie_embedding": None,
    "conv_bias": False,
    "conv_L_cache": 3,
}
NAMES = LAYER | {
    "attn_norm": "operator_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
}
#: In GGUF a layer with a convolution has 0 key heads.
KV_HEADS = "attention.head_count_kv"
CONVOLVES = Key("convolves", KV_HEADS)
TAPS = Key("taps", "shortconv.l_cache")


@attrs.frozen(kw_only=True, slots=False)
class Convolutions:
    """Hyper-parameters of the convolutions.

    Attributes:
        convolves: which layers have one; the others attend.
        taps: of each.
        conv_bias: whether they have biases.
    """

    convolves: tuple[bool, ...]
    taps: int = integer_field(64, 1)
    conv_bias: bool = False


class Convolving(Decoder):
    """What the families of LFM2 share."""

    layer_names = NAMES
    qk_norm = True
    attention_biases = False

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """With the other names of two keys."""
        read = {"norm_eps": self.defaults["norm_eps"], **config}
        read["rms_norm_eps"] = read["norm_eps"]
        if read.get("tie_embedding") is not None:
            read["tie_word_embeddings"] = read["tie_embedding"]
        return super().config_from_hf(read, where)

    def config_to_hf(self, config: ModelConfig) -> Fields:
        """With the other name of a key."""
        written = super().config_to_hf(config)
        return {**written, "norm_eps": written.pop("rms_norm_eps")}

    def activation_to_hf(self, name: str) -> Fields:
        """There is no key."""
        return {}

    def activation(self, c: Section) -> Any:
        """There is no key."""
        return "silu"

    def biases(self, c: Section) -> Fields:
        """Neither attention nor feed-forward have any."""
        return {}

    def convolutions(self, config: ModelConfig) -> Convolutions:
        """Those of the model."""
        return settings(Convolutions, config)

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Which layers convolve, and how."""
        layers = c.integer("num_hidden_layers")
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so
            layers = 0
        return {
            "convolves": tuple(kind == "conv" for kind in self.kinds(c, layers)),
            "taps": c.integer("conv_L_cache"),
            "conv_bias": c.flag("conv_bias"),
        }

    def kinds(self, c: Section, layers: int) -> list[str]:
        """The kind of each layer."""
        return layer_types(c, layers, KINDS)

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Which layers convolve, and how."""
        own = self.convolutions(config)
        return {
            **super().own_to_hf(config),
            "layer_types": [KINDS[convolves] for convolves in own.convolves],
            "conv_L_cache": own.taps,
            "conv_bias": own.conv_bias,
        }

    def network(self, config: ModelConfig) -> Network:
        """The last norm has another name."""
        return attrs.evolve(super().network(config), norm="token_embd_norm")

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """A convolution or attention."""
        own = self.convolutions(config)
        if len(own.convolves) != config.layers:
            raise InvalidFileError(f"convolves has {len(own.convolves)} items for {config.layers} layers")
        if own.convolves[layer]:
            return ShortConvolution(config.width, own.taps, own.conv_bias)
        return self.attention(config, layer, rope)

    def link(self, name: str) -> Link:
        """A kernel has a dimension more in Hugging Face's form."""
        if not name.endswith("shortconv.conv.weight"):
            return super().link(name)
        return mapped(name, self.hf_name(name), _flat, _deep)

    def hf_name(self, name: str) -> str:
        """The last norm has another name."""
        return "model.embedding_norm.weight" if name == "token_embd_norm.weight" else super().hf_name(name)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Layers that convolve have no key heads; what llama.cpp cannot load is refused."""
        own = self.convolutions(config)
        architecture = self.gguf.architecture if self.gguf else ""
        if own.conv_bias:
            raise UnsupportedModelError(
                f"conv_bias of the model is true, and llama.cpp loads no biases of {architecture} files; "
                "choose another format"
            )
        if own.taps < 2 or all(own.convolves):
            what = "a convolution of one tap" if own.taps < 2 else "no layer with attention"
            raise UnsupportedModelError(
                f"the model has {what}, and llama.cpp does not load such {architecture} files; choose another format"
            )
        counts = tuple(0 if convolves else config.kv_heads for convolves in own.convolves)
        return {**super().gguf_metadata(config), KV_HEADS: counts}

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Which layers convolve, by the number of key heads."""
        counts = keys.values.get(KV_HEADS, config.kv_heads)
        counts = counts[: config.layers] if isinstance(counts, tuple) else (counts,) * config.layers
        if set(counts) - {0, config.kv_heads}:
            raise UnsupportedModelError(
                f"{keys.where}: {KV_HEADS} is {counts!r:.60}; edgekit knows one number for all layers with attention"
            )
        values = {**keys.values, KV_HEADS: tuple(count == 0 for count in counts)}
        return super().gguf_config(config, Section(values, keys.where), tensors)


def _flat(tensor: AnyTensor) -> AnyTensor:
    """[channels, 1, taps] to [channels, taps]."""
    return reshaped(tensor, (tensor.shape[0], tensor.shape[-1]))


def _deep(tensor: AnyTensor) -> AnyTensor:
    return reshaped(tensor, (tensor.shape[0], 1, tensor.shape[-1]))


class Lfm2(Convolving):
    """LFM2."""

    name = "lfm2"
    model_types = ("lfm2",)
    hf_class = "Lfm2ForCausalLM"
    apart = "gated short convolutions, and attention in some layers"
    defaults = (
        COMMON
        | CONVOLVING
        | {
            "vocab_size": 65_536,
            "hidden_size": 2560,
            "intermediate_size": 12_288,
            "block_ff_dim": None,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True,
            "full_attn_idxs": None,
        }
    )
    gguf = Gguf("lfm2", keys=(CONVOLVES, TAPS), per_layer=(KV_HEADS,))

    def ffn_from_hf(self, c: Section) -> int:
        """Two thirds of what is stated, times a factor, rounded up to a multiple."""
        stated = c.integer("intermediate_size" if c.values["block_ff_dim"] is None else "block_ff_dim")
        if not c.flag("block_auto_adjust_ff_dim"):
            return stated
        ffn = int(2 * stated / 3)
        factor = c.optional_number("block_ffn_dim_multiplier")
        if factor is None:
            return ffn
        multiple = max(1, c.integer("block_multiple_of"))
        return -(-int(factor * ffn) // multiple) * multiple

    def kinds(self, c: Section, layers: int) -> list[str]:
        """By number in older files; all attend where nothing is said."""
        if c.values["layer_types"] is not None:
            return super().kinds(c, layers)
        attending = c.values["full_attn_idxs"]
        return [KINDS[attending is not None and layer not in attending] for layer in range(layers)]

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """The width is stated as it is."""
        return {**super().own_to_hf(config), "block_auto_adjust_ff_dim": False}

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """Without biases."""
        return super().gguf_own(config, {"conv_bias": False, **own})


__all__ = ["CONVOLVES", "CONVOLVING", "KINDS", "KV_HEADS", "NAMES", "TAPS", "Convolutions", "Convolving", "Lfm2"]
