"""What decoders of transformers' kind share: reading and writing config.json, names of tensors, blocks.

A family derives from `Decoder` and states what is its own: data first (`Decoder.defaults`, `Decoder.layer_names`,
`Decoder.gguf`), a method where that is not enough (`Decoder.tokens`, `Decoder.channels`).

Both dialects of config.json are read: transformers 4 (``rope_theta``, ``rope_scaling``, ``sliding_window_pattern``) and
5 (``rope_parameters``, ``layer_types``). What a file leaves out gets transformers' default for the family. What
transformers ignores is ignored; what would change the result and is not implemented is refused.

Source: transformers 5.23, ``models/<family>/configuration_<family>.py``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, RopeScaling, check_config
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._hf_rope import RopeDialect, rope_from_hf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block, Network
from edgekit.architectures.links import Link, named, one
from edgekit.architectures.mixers import Attention, Gated, Mixer
from edgekit.architectures.ops import Attend, Gate
from edgekit.architectures.rope import Rope, rope_of
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

#: What most families' config.json has, with transformers' defaults.
COMMON: Fields = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
}
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new")
#: Hugging Face's names of what lies outside the layers.
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
#: Hugging Face's names inside a layer, after ``model.layers.N.``.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: What is read besides the keys that have defaults.
_ROPE_KEYS = ("rope_scaling", "rope_parameters", "original_max_position_embeddings")
#: Buffers that old checkpoints carry.
_BUFFERS = ".rotary_emb.inv_freq"


class Decoder:
    """A family of decoders; see `edgekit.architectures._family.Family`.

    Attributes:
        name, model_types, apart, gguf, nested, alike: as the protocol has them.
        hf_class: transformers' class, for ``architectures`` in config.json.
        defaults: of the keys that transformers reads for this family; all others are ignored.
        rope: what its config.json may say of rotation.
        layer_names: Hugging Face's names inside a layer, by canonical name.
        norm_offset: added to Hugging Face's norm weights to make them canonical (Gemma: 1).
        fused: whether Q, K and V are one matrix, and gate and up another (Phi 3).
        qk_norm: whether queries and keys are normalized, head by head.
        post_norms: whether attention and feed-forward are normalized once more before they are added.
        windows: which layers may have a sliding window: none, all, or those of ``layer_types``.
        whole_heads: whether transformers' class wants a width that is a multiple of the number of heads.
        tanh_names: further names of GELU's tanh form.
        attention_biases: whether ``attention_bias`` is read.
        causal: whether a token sees those before it alone.
    """

    name: str
    model_types: tuple[str, ...]
    hf_class: str
    defaults: Mapping[str, Any]
    apart: str = ""
    gguf: Gguf | None = None
    nested: bool = False
    alike: tuple[str, ...] = ()
    rope: RopeDialect = RopeDialect()
    layer_names: Mapping[str, str] = LAYER
    norm_offset: float = 0.0
    fused: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    windows: Literal["none", "all", "types"] = "none"
    whole_heads: bool = False
    tanh_names: tuple[str, ...] = ()
    attention_biases: bool = True
    causal: bool = True

    # Reading config.json.

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """See `Family.hf_fits`."""
        return True

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """See `Family.config_from_hf`."""
        # A key that transformers does not read for this family must not change what is computed.
        known = {key: config[key] for key in (*self.defaults, *_ROPE_KEYS) if key in config}
        c = Section({**self.defaults, **known}, where)
        self.refuse(c)
        heads = c.integer("num_attention_heads")
        head_dim = c.integer("head_dim") if c.values["head_dim"] is not None else head_dim_of(c, heads)
        width = c.integer("hidden_size")
        rope = self.rope_from_hf(c, head_dim)
        read = ModelConfig(
            family=self.name,
            layers=c.integer("num_hidden_layers"),
            width=width,
            heads=heads,
            kv_heads=heads if c.values["num_key_value_heads"] is None else c.integer("num_key_value_heads"),
            head_dim=head_dim,
            ffn=self.ffn_from_hf(c),
            vocab=c.integer("vocab_size"),
            context=c.integer("max_position_embeddings"),
            norm_eps=c.number("rms_norm_eps"),
            attention_scale=self.attention_scale(c, head_dim),
            activation=self.activation(c),
            tied=c.flag("tie_word_embeddings"),
            attention_softcap=c.optional_number("attn_logit_softcapping"),
            output_softcap=c.optional_number("final_logit_softcapping"),
            embedding_scale=self.embedding_scale(c, width),
            causal=self.causal,
            **self.biases(c),
            **self.windows_from_hf(c),
            **rope,
            own=self.own_from_hf(c),
        )
        return self.checked(check_config(read, where), where)

    def checked(self, config: ModelConfig, where: str) -> ModelConfig:
        """Refuse hyper-parameters of the family's own that no model can have."""
        try:
            self.network(attrs.evolve(config, layers=min(config.layers, 1)) if not config.own else config)
        except InvalidFileError as error:
            raise InvalidFileError(f"{where}: {error}") from error
        return config

    def refuse(self, c: Section) -> None:
        """Refuse features that change the result and are not implemented."""
        if c.values.get("use_bidirectional_attention") and self.causal:
            c.refuse("use_bidirectional_attention", True, "causal attention")

    def rope_from_hf(self, c: Section, head_dim: int) -> Fields:
        """The fields of `ModelConfig` that say how queries and keys rotate."""
        return rope_from_hf(self.rope, c, head_dim)

    def ffn_from_hf(self, c: Section) -> int:
        """The inner width of the feed-forward network."""
        return c.integer("intermediate_size")

    def attention_scale(self, c: Section, head_dim: int) -> float:
        """What q·k is multiplied with."""
        base = c.number("query_pre_attn_scalar") if "query_pre_attn_scalar" in c.values else head_dim
        return base**-0.5 if base > 0 else 0.0  # check_config refuses the zero

    def activation(self, c: Section) -> Literal["silu", "gelu_tanh", "gelu"]:
        """Of the gate."""
        name = c.values.get("hidden_activation") or c.values["hidden_act"]
        if name in ("silu", "swish"):
            return "silu"
        if name in (*GELU_TANH, *self.tanh_names):
            return "gelu_tanh"
        c.refuse("hidden_act", name, ", ".join(("silu", *GELU_TANH)))

    def embedding_scale(self, c: Section, width: int) -> float:
        """What embeddings are multiplied with."""
        return 1.0

    def biases(self, c: Section) -> Fields:
        """Which matrices have biases: fields of `ModelConfig`."""
        attention = c.flag("attention_bias")
        return {"qkv_bias": attention, "attn_output_bias": attention}

    def windows_from_hf(self, c: Section) -> Fields:
        """Which layers have a sliding window: fields of `ModelConfig`."""
        if self.windows == "none" or c.values["sliding_window"] is None or not self.window_used(c):
            return {}
        layers = c.integer("num_hidden_layers")
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so; do not build a list of them here
            return {}
        slides = [True] * layers if self.windows == "all" else self._sliding_layers(c, layers)
        if not any(slides):
            return {}
        return {"sliding_window": c.integer("sliding_window"), **_pattern(slides, c)}

    def window_used(self, c: Section) -> bool:
        """Whether the window counts at all."""
        return True

    def _sliding_layers(self, c: Section, layers: int) -> list[bool]:
        types = c.values["layer_types"]
        if types is None:
            return self.sliding_by_default(c, layers)
        names = layer_types(c, layers, ("sliding_attention", "full_attention"))
        return [name == "sliding_attention" for name in names]

    def sliding_by_default(self, c: Section, layers: int) -> list[bool]:
        """Which layers have a window in a file without ``layer_types``."""
        return [False] * layers

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Hyper-parameters of the family's own: `ModelConfig.own`."""
        return {}

    # Writing config.json.

    def config_to_hf(self, config: ModelConfig) -> Fields:
        """See `Family.config_to_hf`."""
        if self.whole_heads and config.width % config.heads:
            raise UnsupportedModelError(
                f"transformers' {self.hf_class} wants a width that is a multiple of its heads, and this model's "
                f"is {config.width} for {config.heads}; keep it in the format that it is in"
            )
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_types[0],
            "hidden_size": config.width,
            "intermediate_size": config.ffn,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab,
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied,
            "rope_theta": config.rope_theta,
            "rope_scaling": hf_scaling(config.rope_scaling),
            **self.activation_to_hf("silu" if config.activation == "silu" else GELU_TANH[0]),
            **self.windows_to_hf(config),
            **self.own_to_hf(config),
        }

    def activation_to_hf(self, name: str) -> Fields:
        """The keys that say the activation."""
        return {"hidden_act": name}

    def windows_to_hf(self, config: ModelConfig) -> Fields:
        """The keys that say which layers have a sliding window."""
        if self.windows == "none":
            return {}
        if self.windows == "all":
            return {"sliding_window": config.sliding_window}
        full = [config.window(layer) is None for layer in range(config.layers)]
        types = ["full_attention" if f else "sliding_attention" for f in full]
        return {"sliding_window": config.sliding_window, "layer_types": types}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """What is the family's own, and which biases there are."""
        return {"attention_bias": config.qkv_bias} if self.attention_biases else {}

    # Blocks.

    def network(self, config: ModelConfig) -> Network:
        """See `Family.network`."""
        ropes = {sliding: rope_of(config, sliding) for sliding in (False, True)}
        return Network(
            vocab=config.vocab,
            width=config.width,
            blocks=tuple(self.block(config, layer, ropes) for layer in range(config.layers)),
            eps=config.norm_eps,
            tied=config.tied,
            embedding_scale=config.embedding_scale,
            softcap=config.output_softcap,
            predicts=config.causal,
        )

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """One block; `ropes` are those of layers without and with a sliding window."""
        return Block(
            self.tokens(config, layer, ropes[config.window(layer) is not None]),
            self.channels(config, layer),
            config.norm_eps,
            tokens_post_norm="post_attention_norm" if self.post_norms else None,
            channels_post_norm="post_ffw_norm" if self.post_norms else None,
        )

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """The token mixer of a layer."""
        return self.attention(config, layer, rope)

    def attention(self, config: ModelConfig, layer: int, rope: Rope | None) -> Attention:
        """Attention as most layers have it."""
        return Attention(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            how=Attend(config.attention_scale, config.window(layer), config.attention_softcap, causal=config.causal),
            eps=config.norm_eps,
            rope=rope,
            fused=self.fused,
            bias=config.qkv_bias,
            output_bias=config.attn_output_bias,
            norm="head" if self.qk_norm else "none",
        )

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """The channel mixer of a layer."""
        gate: Gate = config.activation
        return Gated(config.ffn, gate, self.fused, config.ffn_bias)

    # Names of tensors.

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """See `Family.links`."""
        return [self.link(name) for name, _ in self.network(config).shapes()]

    def link(self, name: str) -> Link:
        """The tensor of that canonical name under Hugging Face's."""
        return one(name, self.hf_name(name), self.norm_offset if name.endswith("_norm.weight") else 0.0)

    def hf_name(self, name: str) -> str:
        """Hugging Face's name of a tensor that both have alike."""
        return named(name, TOP, "model.layers", self.layer_names)

    def ignores(self, name: str) -> bool:
        """See `Family.ignores`."""
        return name.endswith(_BUFFERS)

    # GGUF.

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """See `Family.gguf_metadata`: the family's own hyper-parameters under their keys."""
        keys = self.gguf.keys if self.gguf else ()
        return {key.key: config.own[key.name] for key in keys}  # type: ignore[misc]

    def gguf_fits(self, keys: Section) -> bool:
        """See `Family.gguf_fits`."""
        return not keys.values.get("expert_count")

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """See `Family.gguf_config`: the family's own hyper-parameters by their keys."""
        own: dict[str, object] = {}
        for key in self.gguf.keys if self.gguf else ():
            value = keys.values.get(key.key, key.default)
            if value is ...:
                raise InvalidFileError(f"{keys.where}: key {key.key!r} is missing; convert the model again")
            own[key.name] = value
        own = self.gguf_own(config, own)
        return self.checked(attrs.evolve(config, own=own), keys.where) if own else config

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """`own` with what has no key: llama.cpp computes it the same for every file."""
        return own


def head_dim_of(c: Section, heads: int) -> int:
    """The width of a head where config.json does not say it.

    Raises:
        InvalidFileError: the width is no multiple of the number of heads.
    """
    width = c.integer("hidden_size")
    if heads < 1 or width % heads:
        raise InvalidFileError(f"{c.where}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return width // heads


def layer_types(c: Section, layers: int, known: Sequence[str]) -> list[str]:
    """``layer_types``: one of the known names for each layer.

    Raises:
        InvalidFileError: no list, or of another length.
        UnsupportedModelError: another name.
    """
    types = c.values["layer_types"]
    if not isinstance(types, list | tuple) or len(types) != layers:
        raise InvalidFileError(f"{c.where}: layer_types has to be a list of {layers} names, one a layer")
    for name in types:
        if name not in known:
            c.refuse("layer_types", name, " and ".join(known))
    return list(types)


def _pattern(slides: Sequence[bool], c: Section) -> dict[str, int]:
    if all(slides):
        return {}
    first = slides.index(True)
    if all(slides[first:]):
        return {"full_attention_first": first}
    every = slides.index(False) + 1
    if list(slides) == [(layer + 1) % every != 0 for layer in range(len(slides))]:
        return {"full_attention_every": every}
    c.refuse("layer_types", c.values["layer_types"], "full attention in the first layers, or in every n-th one")


def hf_scaling(scaling: RopeScaling | None) -> Fields | None:
    """``rope_scaling`` in config.json."""
    if scaling is None:
        return None
    written: Fields = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind not in ("linear", "dynamic"):
        written["original_max_position_embeddings"] = scaling.original_context
    match scaling.kind:
        case "llama3":
            written |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        case "longrope":
            written |= {"long_factor": list(scaling.long_factors), "short_factor": list(scaling.short_factors)}
            written["attention_factor"] = scaling.attention_factor
        case "yarn":
            written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
            written["attention_factor"] = scaling.attention_factor
            written |= {} if scaling.truncate else {"truncate": False}
    return written


def fraction(part: int, whole: int) -> float:
    """The ratio, such that ``int(whole * ratio)`` gives `part` back."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, math.inf)


def pre_attention_scalar(scale: float) -> int | float:
    """The number whose ``** -0.5`` is `scale`: the integer, where there is one."""
    base = scale**-2
    return round(base) if math.isclose(round(base), base, rel_tol=1e-12) else base


__all__ = [
    "COMMON",
    "GELU_TANH",
    "LAYER",
    "TOP",
    "Decoder",
    "fraction",
    "head_dim_of",
    "hf_scaling",
    "layer_types",
    "pre_attention_scalar",
]
