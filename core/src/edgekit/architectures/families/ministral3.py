"""Ministral 3, and the language model of Mistral 3: yarn, and queries that grow with their position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from edgekit.architectures._config import ModelConfig, number_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder, hf_scaling
from edgekit.architectures.families.mistral import text_type
from edgekit.architectures.mixers import Attention, Temper
from edgekit.architectures.rope import Rope
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import AnyTensor

#: What transformers takes where config.json says nothing.
_ROPE: Fields = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_BETA = "llama_4_scaling_beta"
_ATTENTION, _LOG = "rope.scaling.attn_factor", "rope.scaling.yarn_log_multiplier"


@attrs.frozen
class Tempered:
    """How queries grow: by ``1 + temper * log(1 + floor(position / original_context))``."""

    temper: float = number_field(1e3, -1e3)


class Ministral3(Decoder):
    """Ministral 3."""

    name = "ministral3"
    model_types = ("ministral3", "mistral3")
    hf_class = "Ministral3ForCausalLM"
    apart = "yarn, and queries that grow with their position; the language model of multimodal ones"
    nested = True
    defaults = COMMON | {
        "vocab_size": 131_072,
        "intermediate_size": 14_336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-5,
    }
    gguf = Gguf("mistral3", interleaved=True, keys=(Key("temper", "attention.temperature_scale", 0.0),))
    windows = "all"
    attention_biases = False

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Of a multimodal model where its language model is of this family."""
        return config.get("model_type") != "mistral3" or text_type(config) == "ministral3"

    def biases(self, c: Section) -> Fields:
        """Transformers builds it without, whatever the file says."""
        return {}

    def rope_from_hf(self, c: Section, head_dim: int) -> Fields:
        """Yarn."""
        found = super().rope_from_hf(Section({**c.values, "rope_scaling": _parameters(c)}, c.where), head_dim)
        scaling = found["rope_scaling"]
        if scaling is None or scaling.kind != "yarn":
            c.refuse("rope_type", scaling and scaling.kind, "yarn for this family")
        return found

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """How queries grow."""
        return {"temper": Section({_BETA: None, **_parameters(c)}, c.where).number(_BETA)}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Everything about rotation in one object, as transformers wants it of this family."""
        scaling = hf_scaling(config.rope_scaling) or {}
        whole = {"mscale": 1.0, "mscale_all_dim": 1.0} if scaling.get("attention_factor") == 1 else {}
        turned = {**scaling, **whole, "rope_theta": config.rope_theta, _BETA: settings(Tempered, config).temper}
        return {"rope_scaling": None, "rope_parameters": turned}

    def attention(self, config: ModelConfig, layer: int, rope: Rope | None) -> Attention:
        """Queries grow."""
        every = config.rope_scaling.original_context if config.rope_scaling else 1
        temper = Temper(settings(Tempered, config).temper, every, 0)
        return attrs.evolve(super().attention(config, layer, rope), temper=temper if temper.scale else None)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """The factor of rotated queries and keys, as published files have it."""
        if config.sliding_window is not None:
            raise UnsupportedModelError(
                f"sliding_window of the model is {config.sliding_window}, and llama.cpp computes mistral3 files as if "
                "it had none; choose another format"
            )
        factor = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
        return {**super().gguf_metadata(config), _LOG: 1.0, _ATTENTION: factor}

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """llama.cpp divides its own factor by one of the multiplier."""
        scaling = config.rope_scaling
        if scaling is None or scaling.kind != "yarn":
            raise UnsupportedModelError(
                f"{keys.where}: rope.scaling.type is {scaling.kind if scaling else 'none'}; edgekit knows yarn for "
                "mistral3 files"
            )
        own = _magnitude(scaling.factor, 1.0) / _magnitude(scaling.factor, keys.optional_number(_LOG) or 0.0)
        factor = own * (keys.optional_number(_ATTENTION) or 1.0)
        return super().gguf_config(
            attrs.evolve(config, rope_scaling=attrs.evolve(scaling, attention_factor=factor)), keys, tensors
        )


def _parameters(c: Section) -> Fields:
    return c.section("rope_scaling") or c.section("rope_parameters") or _ROPE


def _magnitude(factor: float, multiplier: float) -> float:
    return 0.1 * multiplier * math.log(factor) + 1 if factor > 1 else 1.0


__all__ = ["Ministral3", "Tempered"]
