"""Granite 4: Mamba 2, and attention in some layers; with experts and an expert that all tokens use, or dense."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, LAYER, layer_types
from edgekit.architectures.families.granite import MULTIPLIER_KEYS, MULTIPLIERS, ROTATES, Multiplied, Multipliers
from edgekit.architectures.links import Link, decay, decay_log, halves, mapped, under, whole
from edgekit.architectures.mixers import Experts, Gated, Mamba2, Mixer
from edgekit.architectures.mixture import KEYS, MOST
from edgekit.architectures.ops import Ffn, Routing
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

#: The kinds of layers, as transformers 4 names them, and 5 in ``layer_types``.
KINDS = ("attention", "mamba", "full_attention", "linear_attention")
#: In GGUF a layer with Mamba has 0 key heads.
KV_HEADS, INNER, HEADS = "attention.head_count_kv", "ssm.inner_size", "ssm.time_step_rank"
SHARED_FFN = "expert_shared_feed_forward_length"
#: ``time_step_limit`` without limits, and as transformers 5 writes it.
_UNBOUNDED = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])
_GATE_UP = {
    "ffn_gate": "shared_mlp.input_linear",
    "ffn_gate_shexp": "shared_mlp.input_linear",
    "ffn_gate_exps": "block_sparse_moe.input_linear",
}


@attrs.frozen(kw_only=True)
class Sizes(Multipliers):
    """Sizes of Mamba's layers and of experts.

    Attributes:
        recurrent: which layers have Mamba; the others attend.
        rotates: whether queries and keys rotate.
        mamba_heads, mamba_head_dim, groups, state, taps: as `edgekit.architectures.mixers.Mamba2` has them.
        conv_bias, proj_bias: whether Mamba's convolution, and its matrices, have biases.
        experts, experts_used: in a layer, and by a token; 0 in dense models.
        shared_ffn: the inner width of the expert that all tokens use; 0 in dense models.
    """

    recurrent: tuple[bool, ...]
    rotates: bool = False
    mamba_heads: int = integer_field(LIMITS["heads"], 1)
    mamba_head_dim: int = integer_field(LIMITS["head_dim"], 1)
    groups: int = integer_field(LIMITS["heads"], 1)
    state: int = integer_field(1 << 14, 1)
    taps: int = integer_field(64, 1)
    conv_bias: bool = True
    proj_bias: bool = False
    experts: int = integer_field(MOST, default=0)
    experts_used: int = integer_field(MOST, default=0)
    shared_ffn: int = integer_field(LIMITS["ffn"], default=0)

    def __attrs_post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        if self.mamba_heads % self.groups:
            raise InvalidFileError(
                f"groups is {self.groups}, it has to divide the {self.mamba_heads} heads of Mamba; the file is damaged"
            )
        if self.experts and not (1 <= self.experts_used <= self.experts and self.shared_ffn):
            raise InvalidFileError(
                f"each token uses {self.experts_used} of {self.experts} experts and one of width {self.shared_ffn}; "
                "the file is damaged"
            )


def attends_only(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names attention for every layer."""
    kinds = config.get("layer_types") or config.get("layers_block_type") or ["mamba"]
    return isinstance(kinds, list) and all(kind in (KINDS[0], KINDS[2]) for kind in kinds)


class GraniteMoeHybrid(Multiplied):
    """Granite 4."""

    name = "granitemoehybrid"
    model_types = ("granitemoehybrid",)
    hf_class = "GraniteMoeHybridForCausalLM"
    apart = "Granite's multipliers; Mamba 2, and attention in some layers, mostly without positions; experts or dense"
    defaults = (
        COMMON
        | MULTIPLIERS
        | {
            "vocab_size": 32_000,
            "intermediate_size": 11_008,
            "max_position_embeddings": 2048,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 1024,
            "position_embedding_type": None,
            "layers_block_type": None,
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 256,
            "mamba_d_head": "auto",
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "time_step_limit": None,
        }
    )
    gguf = Gguf(
        "granitehybrid",
        interleaved=True,
        divisors=("rope_freqs.weight",),
        keys=(
            *MULTIPLIER_KEYS,
            Key("recurrent", KV_HEADS),
            Key("rotates", ROTATES, True),
            Key("mamba_heads", HEADS),
            Key("mamba_head_dim", INNER),
            Key("groups", "ssm.group_count"),
            Key("state", "ssm.state_size"),
            Key("taps", "ssm.conv_kernel"),
            *(attrs.evolve(key, default=0) for key in KEYS),
            Key("shared_ffn", SHARED_FFN, 0),
        ),
        states=("attention_scale", "embedding_scale"),
        per_layer=(KV_HEADS,),
    )
    layer_names = LAYER | {
        "ffn_down": "shared_mlp.output_linear",
        "ffn_down_shexp": "shared_mlp.output_linear",
        "ffn_down_exps": "block_sparse_moe.output_linear",
        "ffn_gate_inp": "block_sparse_moe.router.layer",
        "ssm_in": "mamba.in_proj",
        "ssm_conv1d": "mamba.conv1d",
        "ssm_norm": "mamba.norm",
        "ssm_out": "mamba.out_proj",
        "ssm_dt.bias": "mamba.dt_bias",
        "ssm_a": "mamba.A_log",
        "ssm_d": "mamba.D",
    }

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """With Mamba; see `granite4_dense` and `granite4_moe` for models without."""
        return not attends_only(config)

    def multipliers(self, config: ModelConfig) -> Sizes:
        """All of the family's own."""
        return settings(Sizes, config)

    # config.json.

    def refuse(self, c: Section) -> None:
        """Step sizes that are bounded."""
        super().refuse(c)
        limits = c.values["time_step_limit"]
        if limits not in (None, *_UNBOUNDED):
            c.refuse("time_step_limit", limits, "null, or from 0 to infinity")

    def ffn_from_hf(self, c: Section) -> int:
        """That of an expert, or of the dense network."""
        return c.integer("intermediate_size" if c.integer("num_local_experts") else "shared_intermediate_size")

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """All sizes."""
        layers, heads = c.integer("num_hidden_layers"), c.integer("mamba_n_heads")
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so
            layers = 0
        kinds = c.values["layer_types"] or c.values["layers_block_type"] or ["mamba"] * layers
        kinds = layer_types(Section({**c.values, "layer_types": kinds}, c.where), layers, KINDS)
        inner = c.integer("mamba_expand") * c.integer("hidden_size")
        size = inner // max(1, heads) if c.values["mamba_d_head"] == "auto" else c.integer("mamba_d_head")
        if size * heads != inner:
            raise InvalidFileError(f"{c.where}: {heads} heads of Mamba of {size} elements do not make {inner}")
        experts = c.integer("num_local_experts")
        return {
            **super().own_from_hf(c),
            "recurrent": tuple(kind in ("mamba", "linear_attention") for kind in kinds),
            "rotates": c.values["position_embedding_type"] == "rope",
            "mamba_heads": heads,
            "mamba_head_dim": size,
            "groups": c.integer("mamba_n_groups"),
            "state": c.integer("mamba_d_state"),
            "taps": c.integer("mamba_d_conv"),
            "conv_bias": c.flag("mamba_conv_bias"),
            "proj_bias": c.flag("mamba_proj_bias"),
            "experts": experts,
            "experts_used": c.integer("num_experts_per_tok") if experts else 0,
            "shared_ffn": c.integer("shared_intermediate_size") if experts else 0,
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """All sizes."""
        own = self.multipliers(config)
        inner = own.mamba_heads * own.mamba_head_dim
        if inner % config.width:
            raise UnsupportedModelError(
                f"transformers' {self.hf_class} wants an inner width of Mamba that is a multiple of the width, and "
                f"this model's is {inner} for {config.width}; keep it in the format that it is in"
            )
        return {
            **super().own_to_hf(config),
            "layer_types": [KINDS[recurrent] for recurrent in own.recurrent],
            "position_embedding_type": "rope" if own.rotates else None,
            "mamba_n_heads": own.mamba_heads,
            "mamba_d_head": own.mamba_head_dim,
            "mamba_expand": inner // config.width,
            "mamba_n_groups": own.groups,
            "mamba_d_state": own.state,
            "mamba_d_conv": own.taps,
            "mamba_conv_bias": own.conv_bias,
            "mamba_proj_bias": own.proj_bias,
            "num_local_experts": own.experts,
            "num_experts_per_tok": own.experts_used,
            "shared_intermediate_size": own.shared_ffn or config.ffn,
        }

    # Blocks.

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """Mamba or attention."""
        own = self.multipliers(config)
        if len(own.recurrent) != config.layers:
            raise InvalidFileError(f"recurrent has {len(own.recurrent)} items for {config.layers} layers")
        if not own.recurrent[layer]:
            return self.attention(config, layer, rope if own.rotates else None)
        sizes = own.mamba_heads, own.mamba_head_dim, own.groups, own.state, own.taps
        return Mamba2(*sizes, config.norm_eps, own.proj_bias, own.conv_bias)

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Experts, or a dense network."""
        own, gate = self.multipliers(config), config.activation
        if not own.experts:
            return Gated(config.ffn, gate)
        shared = Gated(own.shared_ffn, gate, suffix="_shexp")
        return Experts(own.experts, config.ffn, Routing(own.experts_used, "chosen"), Ffn(gate), shared=shared)

    # Tensors.

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Gate and up in one tensor; Mamba's vectors in GGUF's shapes."""
        own = self.multipliers(config)
        found: list[Link] = []
        for name, shape in self.network(config).shapes():
            role = name.split(".", 2)[-1].removesuffix(".weight")
            if role in _GATE_UP:
                hf = f"model.layers.{name.split('.')[1]}.{_GATE_UP[role]}"
                up = name.replace("ffn_gate", "ffn_up")
                found.append(halves((name, up), f"{hf}.weight", (f"{hf}.gate.weight", f"{hf}.up.weight")))
            elif role.startswith("ssm_"):
                found.append(self._mamba(name, role, shape, own))
            elif not role.startswith("ffn_up"):
                found.append(self.link(name))
        return found

    def _mamba(self, name: str, role: str, shape: tuple[int, ...], own: Sizes) -> Link:
        if role == "ssm_conv1d":
            return mapped(name, self.hf_name(name), under(shape), under((shape[0], 1, shape[1])))
        if role == "ssm_norm":
            return mapped(name, self.hf_name(name), under(shape), under((shape[0] * shape[1],)))
        if role not in ("ssm_a", "ssm_d", "ssm_dt.bias"):
            return self.link(name)
        hf, flat = f"model.layers.{name.split('.')[1]}.{self.layer_names[role]}", (own.mamba_heads,)
        if role == "ssm_a":
            return mapped(name, hf, lambda t: whole(t, shape, decay), lambda t: whole(t, flat, decay_log))
        return mapped(name, hf, under(shape), under(flat))

    # GGUF.

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Layers with Mamba have no key heads; what llama.cpp does not load is refused."""
        own = self.multipliers(config)
        inner = own.mamba_heads * own.mamba_head_dim
        if own.proj_bias or not own.conv_bias:
            key, value = ("mamba_proj_bias", "true") if own.proj_bias else ("mamba_conv_bias", "false")
            raise UnsupportedModelError(
                f"{key} of the model is {value}, and llama.cpp computes granitehybrid files with a bias of Mamba's "
                "convolution and none of its matrices; choose another format"
            )
        if inner != 2 * config.width:
            raise UnsupportedModelError(
                f"the inner width of the model's Mamba is {inner}, and llama.cpp loads granitehybrid files only with "
                f"twice the model's width, {2 * config.width}; choose another format"
            )
        if all(own.recurrent):
            raise UnsupportedModelError(
                "no layer of the model has attention, and llama.cpp loads no such granitehybrid files; choose another "
                "format"
            )
        counts = tuple(0 if recurrent else config.kv_heads for recurrent in own.recurrent)
        return {**super().gguf_metadata(config), KV_HEADS: counts, INNER: inner}

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Which layers recur, by the number of key heads; which have biases, by any layer's."""
        counts = keys.values.get(KV_HEADS, config.kv_heads)
        counts = counts[: config.layers] if isinstance(counts, tuple) else (counts,) * config.layers
        if set(counts) - {0, config.kv_heads}:
            raise UnsupportedModelError(
                f"{keys.where}: {KV_HEADS} is {counts!r:.60}; edgekit knows one number for all layers with attention"
            )
        inner, heads = (Section({key: 0, **keys.values}, keys.where).integer(key) for key in (INNER, HEADS))
        values = {**keys.values, KV_HEADS: tuple(count == 0 for count in counts), INNER: inner // max(1, heads)}
        config = super().gguf_config(config, Section(values, keys.where), tensors)
        queries, output = (any(name.endswith(f"{role}.bias") for name in tensors) for role in ("attn_q", "attn_output"))
        own = {**config.own, "conv_bias": True, "proj_bias": False}
        return attrs.evolve(config, own=own, qkv_bias=queries, attn_output_bias=output)

    def gguf_fits(self, keys: Section) -> bool:
        """With experts or without."""
        return True


__all__ = ["SHARED_FFN", "GraniteMoeHybrid", "Sizes", "attends_only"]
