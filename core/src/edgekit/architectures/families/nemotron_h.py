"""Nemotron-H: one mixer a layer, Mamba 2, attention without positions, or a feed-forward network without a gate.

Steps of the recurrence below ``time_step_min`` stay as they are, as in llama.cpp; transformers 5.23 raises them to it
where it computes a whole text, and not where it generates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block
from edgekit.architectures.decoder import COMMON, Decoder, layer_types
from edgekit.architectures.links import Link, decay, decay_log, mapped, one, under, whole
from edgekit.architectures.mixers import Mamba2, Mixer, Plain
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

#: The kinds of layers: names of transformers 5, then of earlier configurations, and letters of a pattern.
KINDS = {
    "linear_attention": "mamba",
    "mamba": "mamba",
    "M": "mamba",
    "full_attention": "attention",
    "attention": "attention",
    "*": "attention",
    "mlp": "mlp",
    "-": "mlp",
    "moe": "moe",
    "E": "moe",
}
_WRITTEN = {"mamba": "linear_attention", "attention": "full_attention", "mlp": "mlp", "moe": "moe"}
KV_HEADS, FFN = "attention.head_count_kv", "feed_forward_length"
INNER, HEADS = "ssm.inner_size", "ssm.time_step_rank"
#: Of transformers, where a configuration says nothing.
_DEFAULT = ["linear_attention", "moe", "full_attention", "mlp"]
_TOP = {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"}
KEYS = (
    Key("mamba_heads", HEADS),
    Key("groups", "ssm.group_count"),
    Key("state", "ssm.state_size"),
    Key("taps", "ssm.conv_kernel"),
)


@attrs.frozen(kw_only=True, slots=False)
class Sizes:
    """Sizes of Mamba's layers.

    Attributes:
        kinds: of each layer: ``mamba``, ``attention``, ``mlp`` or ``moe``.
        mamba_heads, mamba_head_dim, groups, state, taps: as `edgekit.architectures.mixers.Mamba2` has them.
        conv_bias, proj_bias: whether Mamba's convolution, and its matrices, have biases.
    """

    kinds: tuple[str, ...]
    mamba_heads: int = integer_field(LIMITS["heads"], 1)
    mamba_head_dim: int = integer_field(LIMITS["head_dim"], 1)
    groups: int = integer_field(LIMITS["heads"], 1)
    state: int = integer_field(1 << 14, 1)
    taps: int = integer_field(64, 1)
    conv_bias: bool = True
    proj_bias: bool = False

    def __attrs_post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        if self.mamba_heads % self.groups:
            raise InvalidFileError(
                f"groups is {self.groups}, it has to divide the {self.mamba_heads} heads of Mamba; the file is damaged"
            )


class NemotronH(Decoder):
    """Nemotron-H with dense feed-forward networks."""

    name = "nemotron_h"
    model_types = ("nemotron_h",)
    hf_class = "NemotronHForCausalLM"
    apart = "one mixer a layer: Mamba 2, attention without positions, or a network without a gate (ReLU squared)"
    attention_biases = False
    sizes_kind: type[Sizes] = Sizes
    #: What a layer is called that is neither Mamba nor attention.
    network_kind = "mlp"
    defaults: Mapping[str, Any] = COMMON | {
        "vocab_size": 131_072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "intermediate_size": 21_504,
        "num_hidden_layers": None,
        "layers_block_type": None,
        "layer_types": None,
        "hybrid_override_pattern": None,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "layer_norm_epsilon": 1e-5,
    }
    gguf = Gguf("nemotron_h", keys=KEYS, per_layer=(KV_HEADS, FFN))
    layer_names = {  # noqa: RUF012
        "attn_norm": "norm",
        "attn_q": "mixer.q_proj",
        "attn_k": "mixer.k_proj",
        "attn_v": "mixer.v_proj",
        "attn_output": "mixer.o_proj",
        "ffn_up": "mixer.up_proj",
        "ffn_down": "mixer.down_proj",
        "ssm_in": "mixer.in_proj",
        "ssm_conv1d": "mixer.conv1d",
        "ssm_norm": "mixer.norm",
        "ssm_out": "mixer.out_proj",
        "ssm_dt.bias": "mixer.dt_bias",
        "ssm_a": "mixer.A_log",
        "ssm_d": "mixer.D",
    }

    def sizes(self, config: ModelConfig) -> Sizes:
        """Those of the family's own."""
        return settings(self.sizes_kind, config)

    # config.json.

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Where no layer has experts."""
        return "moe" not in kinds_of(config)

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """The number of layers is that of their kinds; transformers never ties the output matrix."""
        given = pattern_of(config)
        if not isinstance(given, list | str) or not 1 <= len(given) <= LIMITS["layers"]:
            raise InvalidFileError(f"{where}: layers_block_type is no list of layers; the file is damaged")
        section = Section({**config, "layer_types": list(given)}, where)
        layer_types(section, len(given), tuple(KINDS))
        known = {key: config[key] for key in self.defaults if key in config}
        values = {**known, "num_hidden_layers": len(given), "layers_block_type": list(given)}
        values["tie_word_embeddings"] = False
        epsilon = config.get("layer_norm_epsilon", self.defaults["layer_norm_epsilon"])
        return super().config_from_hf({**values, "rms_norm_eps": epsilon}, where)

    def refuse(self, c: Section) -> None:
        """Other activations, and layers of both kinds of networks."""
        super().refuse(c)
        for key, allowed in (("mlp_hidden_act", "relu2"), ("mamba_hidden_act", "silu")):
            if c.values[key] != allowed:
                c.refuse(key, c.values[key], allowed)
        kinds = {KINDS[kind] for kind in c.values["layers_block_type"]}
        if {"mlp", "moe"} <= kinds:
            c.refuse("layers_block_type", c.values["layers_block_type"], "mlp or moe, not both in one model")

    def biases(self, c: Section) -> Fields:
        """The feed-forward network's alone: transformers builds attention without, whatever the file says."""
        return {"ffn_bias": c.flag("mlp_bias")}

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """All sizes."""
        return {
            "kinds": tuple(KINDS[kind] for kind in c.values["layers_block_type"]),
            "mamba_heads": c.integer("mamba_num_heads"),
            "mamba_head_dim": c.integer("mamba_head_dim"),
            "groups": c.integer("n_groups"),
            "state": c.integer("ssm_state_size"),
            "taps": c.integer("conv_kernel"),
            "conv_bias": c.flag("use_conv_bias"),
            "proj_bias": c.flag("use_bias"),
        }

    def config_to_hf(self, config: ModelConfig) -> Fields:
        """Without rotation."""
        own, written = self.sizes(config), super().config_to_hf(config)
        for key in ("rope_theta", "rope_scaling", "hidden_act", "num_hidden_layers", "rms_norm_eps"):
            del written[key]
        return written | {
            "layers_block_type": [_WRITTEN[kind] for kind in own.kinds],
            "layer_norm_epsilon": config.norm_eps,
            "mlp_bias": config.ffn_bias,
            "mlp_hidden_act": "relu2",
            "mamba_num_heads": own.mamba_heads,
            "mamba_head_dim": own.mamba_head_dim,
            "n_groups": own.groups,
            "ssm_state_size": own.state,
            "conv_kernel": own.taps,
            "use_conv_bias": own.conv_bias,
            "use_bias": own.proj_bias,
        }

    # Blocks.

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """One mixer."""
        own = self.sizes(config)
        if len(own.kinds) != config.layers or not set(own.kinds) <= {"mamba", "attention", self.network_kind}:
            raise InvalidFileError(f"kinds of layers are {own.kinds!r:.60} for {config.layers} layers")
        return Block(self._mixer(config, own, own.kinds[layer], layer), None, config.norm_eps)

    def _mixer(self, config: ModelConfig, own: Sizes, kind: str, layer: int) -> Mixer:
        if kind == "attention":
            return self.attention(config, layer, None)
        if kind == "mamba":
            sizes = own.mamba_heads, own.mamba_head_dim, own.groups, own.state, own.taps
            return Mamba2(*sizes, config.norm_eps, own.proj_bias, own.conv_bias)
        return self.channels(config, layer)

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Without a gate."""
        return Plain(config.ffn, "relu2", config.ffn_bias)

    # Tensors.

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Under ``backbone.``, or ``model.`` where a checkpoint was saved from transformers' class."""
        own, shapes = self.sizes(config), self.network(config).shapes()
        return [self._linked(config, own, name, shape, names) for name, shape in shapes]

    def _linked(
        self, config: ModelConfig, own: Sizes, name: str, shape: tuple[int, ...], names: Collection[str]
    ) -> Link:
        role, hf = name.split(".", 2)[-1].removesuffix(".weight"), self.hf_name(name)
        if role == "ssm_conv1d":
            return mapped(name, hf, under(shape), under((shape[0], 1, shape[1])))
        if role == "ssm_norm":
            return mapped(name, hf, under(shape), under((shape[0] * shape[1],)))
        flat = (own.mamba_heads,)
        if role == "ssm_a":
            return mapped(name, hf, lambda t: whole(t, shape, decay), lambda t: whole(t, flat, decay_log))
        if role in ("ssm_d", "ssm_dt.bias"):
            return mapped(name, hf, under(shape), under(flat))
        return one(name, hf)

    def hf_name(self, name: str) -> str:
        """Hugging Face's name of a tensor."""
        stem, _, kind = name.rpartition(".")
        if not name.startswith("blk."):
            return f"{_TOP[stem]}.{kind}"
        _, layer, role = name.split(".", 2)
        prefix = f"backbone.layers.{layer}."
        if role in self.layer_names:
            return prefix + self.layer_names[role]
        role, _, kind = role.rpartition(".")
        return f"{prefix}{self.layer_names[role]}.{kind}"

    def ignores(self, name: str) -> bool:
        """And layers that predict further tokens."""
        return name.startswith("mtp.") or super().ignores(name)

    # GGUF.

    def gguf_fits(self, keys: Section) -> bool:
        """By the architecture alone."""
        return True

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Layers with attention have key heads, networks a width, layers with Mamba neither."""
        own = self.sizes(config)
        if own.proj_bias or not own.conv_bias:
            key, value = ("use_bias", "true") if own.proj_bias else ("use_conv_bias", "false")
            raise UnsupportedModelError(
                f"{key} of the model is {value}, and llama.cpp computes nemotron_h files with a bias of Mamba's "
                "convolution and none of its matrices; choose another format"
            )
        widths = {"mamba": 0, "attention": 0, self.network_kind: self.gguf_width(config)}
        return {
            **super().gguf_metadata(config),
            INNER: own.mamba_heads * own.mamba_head_dim,
            KV_HEADS: tuple(config.kv_heads if kind == "attention" else 0 for kind in own.kinds),
            FFN: tuple(widths[kind] for kind in own.kinds),
            "attention.layer_norm_epsilon": config.norm_eps,
            "rope.scaling.finetuned": False,
        }

    def gguf_width(self, config: ModelConfig) -> int:
        """The number by which llama.cpp tells networks from other layers."""
        return config.ffn

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """The kinds of layers, by key heads and widths; biases by any layer's."""
        counts, widths = (_array(keys, key, config.layers) for key in (KV_HEADS, FFN))
        if set(counts) - {0, config.kv_heads} or set(widths) - {0, config.ffn}:
            raise UnsupportedModelError(
                f"{keys.where}: {KV_HEADS} is {counts!r:.60}, {FFN} {widths!r:.60}; edgekit knows one number of each, "
                "and 0"
            )
        pairs = zip(counts, widths, strict=True)
        kinds = tuple("attention" if c else self.network_kind if w else "mamba" for c, w in pairs)
        inner, heads = (Section({key: 0, **keys.values}, keys.where).integer(key) for key in (INNER, HEADS))
        found: Fields = {
            field: any(name.endswith(f"{role}.bias") for name in tensors)
            for field, role in (("qkv_bias", "attn_q"), ("attn_output_bias", "attn_output"), ("ffn_bias", "ffn_up"))
        }
        own = {key.name: keys.values.get(key.key, key.default) for key in self.gguf.keys}
        missing = next((key.key for key in self.gguf.keys if own[key.name] is ...), None)
        if missing is not None:
            raise InvalidFileError(f"{keys.where}: key {missing!r} is missing; convert the model again")
        own |= {
            "kinds": kinds,
            "mamba_head_dim": inner // max(1, heads),
            "conv_bias": any(name.endswith("ssm_conv1d.bias") for name in tensors),
            "proj_bias": False,
        }
        return self.checked(attrs.evolve(config, own={**own, **self.gguf_further(tensors)}, **found), keys.where)

    def gguf_further(self, tensors: Mapping[str, AnyTensor]) -> dict[str, object]:
        """What else has no key."""
        return {}


def pattern_of(config: Mapping[str, Any]) -> Any:
    """The kinds of layers as a configuration has them: a list, or a text with a letter each."""
    named = config.get("layers_block_type") or config.get("layer_types")
    return named or config.get("hybrid_override_pattern") or _DEFAULT


def kinds_of(config: Mapping[str, Any]) -> list[str]:
    """The kinds that edgekit knows among a configuration's layers."""
    given = pattern_of(config)
    return [KINDS[kind] for kind in given if kind in KINDS] if isinstance(given, list | str) else []


def _array(keys: Section, key: str, layers: int) -> tuple[int, ...]:
    value = keys.values.get(key, 0)
    return tuple(value)[:layers] if isinstance(value, tuple) else (value,) * layers


__all__ = ["FFN", "KEYS", "KV_HEADS", "NemotronH", "Sizes", "kinds_of"]
