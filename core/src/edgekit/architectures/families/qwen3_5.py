"""Qwen 3.5 and 3.6, dense: three of four layers are gated delta nets.

Value heads are canonical in GGUF's order: tiled over the key heads (head i goes with key head ``i % key_heads``), where
Hugging Face groups them (``i // (value_heads / key_heads)``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._hf_rope import RopeDialect
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block
from edgekit.architectures.decoder import COMMON, LAYER, Decoder, fraction, hf_scaling, layer_types
from edgekit.architectures.links import Link, changed, columns, decay, decay_log, mapped, reshaped, rows_of
from edgekit.architectures.mixers import DeltaNet
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor
from edgekit.typing import Indices

#: The kinds of layers, as ``layer_types`` names them.
KINDS = ("linear_attention", "full_attention")
#: Keys of config.json, with the defaults of the dense models.
DELTA: Fields = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}
NAMES = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
SSM_KEYS = (
    Key("taps", "ssm.conv_kernel"),
    Key("key_dim", "ssm.state_size"),
    Key("key_heads", "ssm.group_count"),
    Key("value_heads", "ssm.time_step_rank"),
    Key("recurrent", "attention.recurrent_layers"),
)
#: llama.cpp wants four of them.
SECTIONS = Key("sections", "rope.dimension_sections")


@attrs.frozen(kw_only=True, slots=False)
class DeltaSizes:
    """Hyper-parameters of the gated delta nets.

    Attributes:
        recurrent: which layers have one; the others attend.
        key_heads, value_heads, key_dim, value_dim: sizes.
        taps: of the convolution.
        sections: how the rotary frequencies are shared among time, height and width; in text all are alike.
    """

    recurrent: tuple[bool, ...]
    key_heads: int = integer_field(LIMITS["heads"], 1)
    value_heads: int = integer_field(LIMITS["heads"], 1)
    key_dim: int = integer_field(LIMITS["head_dim"], 1)
    value_dim: int = integer_field(LIMITS["head_dim"], 1)
    taps: int = integer_field(64, 1)
    sections: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse value heads that the key heads do not share evenly."""
        if self.value_heads % self.key_heads:
            raise InvalidFileError(
                f"value_heads is {self.value_heads}, it has to be a multiple of the {self.key_heads} key heads; "
                "the file is damaged"
            )


class DeltaHybrid(Decoder):
    """What the hybrids of gated delta nets and gated attention share."""

    layer_names = NAMES
    rope = RopeDialect(partial=True)
    norm_offset = 1.0
    qk_norm = True
    tiled = True

    def delta(self, config: ModelConfig) -> DeltaSizes:
        """The sizes of the gated delta nets."""
        return settings(DeltaSizes, config)

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Kinds of layers, and sizes."""
        layers = c.integer("num_hidden_layers")
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so
            layers = 0
        every = max(1, c.integer("full_attention_interval"))
        kinds = [KINDS[(layer + 1) % every == 0] for layer in range(layers)]
        if c.values["layer_types"] is not None:
            kinds = layer_types(c, layers, KINDS)
        parameters = c.section("rope_scaling") or c.section("rope_parameters")
        sections = parameters.get("mrope_section") or ()
        if not isinstance(sections, list | tuple) or not all(type(n) is int and 0 <= n <= 1 << 14 for n in sections):
            c.refuse("mrope_section", sections, "three sizes")
        return {
            "recurrent": tuple(kind == "linear_attention" for kind in kinds),
            "key_heads": c.integer("linear_num_key_heads"),
            "value_heads": c.integer("linear_num_value_heads"),
            "key_dim": c.integer("linear_key_head_dim"),
            "value_dim": c.integer("linear_value_head_dim"),
            "taps": c.integer("linear_conv_kernel_dim"),
            "sections": tuple(sections),
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Kinds of layers, and sizes."""
        delta = self.delta(config)
        turning = fraction(config.rotary_dim, config.head_dim)
        parameters = {
            "rope_type": "default",
            **(hf_scaling(config.rope_scaling) or {}),
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": turning,
            **({"mrope_section": list(delta.sections), "mrope_interleaved": True} if delta.sections else {}),
        }
        return {
            **super().own_to_hf(config),
            "rope_parameters": parameters,
            "rope_scaling": None,
            "partial_rotary_factor": turning,
            "layer_types": [KINDS[not recurrent] for recurrent in delta.recurrent],
            "linear_conv_kernel_dim": delta.taps,
            "linear_key_head_dim": delta.key_dim,
            "linear_value_head_dim": delta.value_dim,
            "linear_num_key_heads": delta.key_heads,
            "linear_num_value_heads": delta.value_heads,
        }

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """A gated delta net or gated attention, then the feed-forward network."""
        delta = self.delta(config)
        if len(delta.recurrent) != config.layers:
            raise InvalidFileError(f"recurrent has {len(delta.recurrent)} items for {config.layers} layers")
        mixer: Any
        if delta.recurrent[layer]:
            sizes = delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim
            mixer = DeltaNet(*sizes, delta.taps, config.norm_eps, self.tiled, fused_rates=not self.tiled)
        else:
            mixer = attrs.evolve(self.attention(config, layer, ropes[False]), gated=True)
        return Block(mixer, self.channels(config, layer), config.norm_eps, channels_norm="post_attention_norm")

    # Tensors.

    def link(self, name: str) -> Link:
        """What both have alike; a gated delta net's norm is stored as it multiplies."""
        role = name.split(".", 2)[-1]
        if role == "ssm_a":
            return self._mapped(name, "A_log", _decay, _log)
        if role == "ssm_dt.bias":
            return self._mapped(name, "dt_bias", _same, _same)
        if role == "ssm_conv1d.weight":
            return mapped(name, self.hf_name(name), _flat, _deep)
        link = super().link(name)
        if role == "ssm_norm.weight":
            return mapped(name, self.hf_name(name), _same, _same)
        return link

    def _mapped(self, name: str, stem: str, read: Any, write: Any) -> Link:
        return mapped(name, f"model.layers.{name.split('.')[1]}.linear_attn.{stem}", read, write)

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Value heads in the other order."""
        delta = self.delta(config)
        found = super().links(config, names)
        if not self.tiled or delta.key_heads == delta.value_heads:
            return found
        return [_tiled(link, delta) for link in found]

    def ignores(self, name: str) -> bool:
        """The tensors that predict several tokens."""
        return super().ignores(name) or name.startswith("mtp.")

    # GGUF.

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Sizes, and which layers recur."""
        delta = self.delta(config)
        if delta.key_dim != delta.value_dim:
            raise UnsupportedModelError(
                f"the key heads of the model's gated delta nets have {delta.key_dim} elements and the value heads "
                f"{delta.value_dim}, and llama.cpp knows one size for both; choose another format"
            )
        keys: dict[str, Setting] = {
            **super().gguf_metadata(config),
            "ssm.inner_size": delta.value_heads * delta.value_dim,
        }
        if SECTIONS.key in keys:
            keys[SECTIONS.key] = (*delta.sections, 0, 0, 0, 0)[:4]
        return keys

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """Values are as wide as keys."""
        return super().gguf_own(config, {"sections": (), **own, "value_dim": own["key_dim"]})

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Layers recur as an array says, or all but every n-th."""
        values = dict(keys.values)
        every = values.get("full_attention_interval", 4)
        if "attention.recurrent_layers" not in values and type(every) is int and every > 0:
            values["attention.recurrent_layers"] = tuple((layer + 1) % every != 0 for layer in range(config.layers))
        sections = values.get("rope.dimension_sections", ())
        values["rope.dimension_sections"] = sections[:3] if isinstance(sections, tuple) and any(sections) else ()
        return super().gguf_config(config, Section(values, keys.where), tensors)


def _tiled(link: Link, delta: DeltaSizes) -> Link:
    """The link with the value heads of its tensor tiled instead of grouped."""
    role = link.canonical[0].split(".", 2)[-1]
    before = 2 * delta.key_heads * delta.key_dim
    rows = {
        "attn_qkv.weight": (before, delta.value_dim),
        "ssm_conv1d.weight": (before, delta.value_dim),
        "attn_gate.weight": (0, delta.value_dim),
        "ssm_alpha.weight": (0, 1),
        "ssm_beta.weight": (0, 1),
    }
    cols = {"ssm_out.weight": delta.value_dim, "ssm_a": 1, "ssm_dt.bias": 1}
    if role in rows:
        first, size = rows[role]
        to, back = (_blocks(order, first, size) for order in _orders(delta))
    elif role in cols:
        wide = [_wide(order, cols[role]) for order in _orders(delta)]
        to, back = (partial(columns, order=order) for order in wide)
    else:
        return link
    return attrs.evolve(
        link, read=lambda tensors: (to(link.read(tensors)[0]),), write=lambda tensors: link.write((back(tensors[0]),))
    )


def _orders(delta: DeltaSizes) -> tuple[Indices, Indices]:
    """For each tiled value head the grouped one, and the other way round."""
    heads = np.arange(delta.value_heads)
    return (
        heads.reshape(delta.key_heads, -1).T.reshape(-1),
        heads.reshape(-1, delta.key_heads).T.reshape(-1),
    )


def _wide(order: Indices, size: int) -> Indices:
    wide: Indices = (order[:, None] * size + np.arange(size)).reshape(-1)
    return wide


def _blocks(order: Indices, first: int, size: int) -> Any:
    """A function that puts blocks of `size` rows, which begin at row `first`, in an order."""

    def reorder(tensor: AnyTensor) -> AnyTensor:
        pieces = [(tensor, 0, first)] if first else []
        pieces += [(tensor, first + int(head) * size, first + (int(head) + 1) * size) for head in order]
        return rows_of(tensor.name, tensor.shape, pieces)

    return reorder


def _same(tensor: AnyTensor) -> AnyTensor:
    return tensor


def _decay(tensor: AnyTensor) -> AnyTensor:
    return changed(tensor, decay)


def _log(tensor: AnyTensor) -> AnyTensor:
    return changed(tensor, decay_log)


def _flat(tensor: AnyTensor) -> AnyTensor:
    """[channels, 1, taps] to [channels, taps]."""
    return reshaped(tensor, (tensor.shape[0], tensor.shape[-1]))


def _deep(tensor: AnyTensor) -> AnyTensor:
    return reshaped(tensor, (tensor.shape[0], 1, tensor.shape[-1]))


class Qwen35(DeltaHybrid):
    """Qwen 3.5, dense."""

    name = "qwen3_5"
    model_types = ("qwen3_5_text", "qwen3_5")
    hf_class = "Qwen3_5ForCausalLM"
    apart = "gated delta nets and gated attention; part of a head rotates; the language model of multimodal ones"
    nested = True
    defaults = (
        COMMON
        | DELTA
        | {
            "vocab_size": 248_320,
            "intermediate_size": 12_288,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 32_768,
            "partial_rotary_factor": 0.25,
        }
    )
    gguf = Gguf("qwen35", biases=False, keys=(*SSM_KEYS, SECTIONS))


__all__ = ["DELTA", "KINDS", "NAMES", "SECTIONS", "SSM_KEYS", "DeltaHybrid", "DeltaSizes", "Qwen35"]
