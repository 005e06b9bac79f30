"""LFM2: gated short convolutions, and attention in a few layers."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block, Network
from edgekit.architectures.decoder import COMMON, LAYER, Decoder, layer_types
from edgekit.architectures.links import Link, mapped, reshaped
from edgekit.architectures.mixers import ShortConvolution
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

#: The kinds of layers, as ``layer_types`` names them.
KINDS = ("full_attention", "conv")
NAMES = LAYER | {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
#: What the two families share.
COMMON_LFM2: Fields = {
    **{key: value for key, value in COMMON.items() if key != "rms_norm_eps"},
    "norm_eps": 1e-5,
    "vocab_size": 65_536,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0,
    "conv_bias": False,
    "conv_L_cache": 3,
    "full_attn_idxs": None,
}


@attrs.frozen(kw_only=True, slots=False)
class Convolutions:
    """Hyper-parameters of the convolutions.

    Attributes:
        convolves: which layers do; the others attend.
        taps: of the convolution.
        conv_bias: whether its matrices have biases.
    """

    convolves: tuple[bool, ...]
    taps: int = integer_field(64, 2)
    conv_bias: bool = False


#: The second is made of the key heads of each layer.
CONVOLUTION_KEYS = (Key("taps", "shortconv.l_cache"), Key("convolves", "convolves"))


class ConvolutionHybrid(Decoder):
    """What LFM2 with and without experts shares."""

    layer_names = NAMES
    qk_norm = True
    attention_biases = False

    def convolutions(self, config: ModelConfig) -> Convolutions:
        """Which layers convolve."""
        return settings(Convolutions, config)

    def config_from_hf(self, config: Fields | Mapping[str, object], where: str) -> ModelConfig:
        """The epsilon has another name, and so had tied embeddings."""
        named = {**config, "rms_norm_eps": config.get("norm_eps", 1e-5)}
        if "tie_embedding" in config:  # its older name
            named["tie_word_embeddings"] = config["tie_embedding"]
        return super().config_from_hf(named, where)

    def biases(self, c: Section) -> Fields:
        """Attention and feed-forward have none."""
        return {}

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Which layers convolve."""
        layers = c.integer("num_hidden_layers")
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so
            layers = 0
        kinds = ["full_attention"] * layers
        if c.values["layer_types"] is not None:
            kinds = layer_types(c, layers, KINDS)
        elif c.values["full_attn_idxs"] is not None:
            attends = c.values["full_attn_idxs"]
            if not isinstance(attends, list | tuple):
                c.refuse("full_attn_idxs", attends, "a list of layers")
            kinds = ["full_attention" if layer in attends else "conv" for layer in range(layers)]
        return {
            "convolves": tuple(kind == "conv" for kind in kinds),
            "taps": c.integer("conv_L_cache"),
            "conv_bias": c.flag("conv_bias"),
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Which layers convolve."""
        own = self.convolutions(config)
        return {
            **super().own_to_hf(config),
            "norm_eps": config.norm_eps,
            "layer_types": [KINDS[convolves] for convolves in own.convolves],
            "conv_L_cache": own.taps,
            "conv_bias": own.conv_bias,
        }

    def network(self, config: ModelConfig) -> Network:
        """The last norm has the embedding's name."""
        return attrs.evolve(super().network(config), norm="token_embd_norm")

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """A convolution or attention, then the feed-forward network."""
        own = self.convolutions(config)
        if len(own.convolves) != config.layers:
            raise InvalidFileError(f"convolves has {len(own.convolves)} items for {config.layers} layers")
        if own.convolves[layer]:
            mixer = ShortConvolution(config.width, own.taps, own.conv_bias)
            return Block(mixer, self.channels(config, layer), config.norm_eps)
        return Block(self.attention(config, layer, ropes[False]), self.channels(config, layer), config.norm_eps)

    def hf_name(self, name: str) -> str:
        """The last norm's name."""
        return "model.embedding_norm.weight" if name == "token_embd_norm.weight" else super().hf_name(name)

    def link(self, name: str) -> Link:
        """The convolution's kernel has a dimension more in a checkpoint."""
        if name.endswith("shortconv.conv.weight"):
            return mapped(name, self.hf_name(name), _flat, _deep)
        return super().link(name)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Layers that convolve have no key heads."""
        own = self.convolutions(config)
        if own.conv_bias:
            raise UnsupportedModelError("llama.cpp loads no biases of lfm2 files' convolutions; choose another format")
        heads = tuple(0 if convolves else config.kv_heads for convolves in own.convolves)
        keys = {**super().gguf_metadata(config), "attention.head_count_kv": heads}
        del keys["convolves"]
        return keys

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Layers without key heads convolve."""
        heads = keys.values.get("attention.head_count_kv")
        each = heads if isinstance(heads, tuple) else (heads,) * config.layers
        values = {**keys.values, "convolves": tuple(count == 0 for count in each)}
        return super().gguf_config(config, Section(values, keys.where), tensors)


def _flat(tensor: AnyTensor) -> AnyTensor:
    """[channels, 1, taps] to [channels, taps]."""
    return reshaped(tensor, (tensor.shape[0], tensor.shape[-1]))


def _deep(tensor: AnyTensor) -> AnyTensor:
    return reshaped(tensor, (tensor.shape[0], 1, tensor.shape[-1]))


class Lfm2(ConvolutionHybrid):
    """LFM2, dense."""

    name = "lfm2"
    model_types = ("lfm2",)
    hf_class = "Lfm2ForCausalLM"
    apart = "gated short convolutions in most layers"
    defaults = COMMON_LFM2 | {
        "hidden_size": 2560,
        "intermediate_size": 12_288,
        "rms_norm_eps": 1e-5,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_ff_dim": None,
    }
    gguf = Gguf("lfm2", keys=CONVOLUTION_KEYS, per_layer=("attention.head_count_kv",))

    def ffn_from_hf(self, c: Section) -> int:
        """The width that is made of the one that is stated, as transformers makes it."""
        width = c.integer("intermediate_size") if c.values["block_ff_dim"] is None else c.integer("block_ff_dim")
        if not c.flag("block_auto_adjust_ff_dim"):
            return width
        width = int(2 * width / 3)
        if c.values["block_ffn_dim_multiplier"] is not None:
            width = int(c.number("block_ffn_dim_multiplier") * width)
        multiple = max(1, c.integer("block_multiple_of"))
        return multiple * (-(-width // multiple))

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """The width as it is."""
        return {**super().own_to_hf(config), "block_auto_adjust_ff_dim": False}

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """Without biases."""
        return {**own, "conv_bias": False}


__all__ = ["COMMON_LFM2", "CONVOLUTION_KEYS", "KINDS", "NAMES", "ConvolutionHybrid", "Convolutions", "Lfm2"]
