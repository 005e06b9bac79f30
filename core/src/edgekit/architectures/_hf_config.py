"""Hugging Face's config.json to `ModelConfig`.

Both dialects are read: transformers 4 (``rope_theta``, ``rope_scaling``, ``sliding_window_pattern``) and 5
(``rope_parameters``, ``layer_types``). What a file leaves out gets transformers' default for the family.
What transformers ignores is ignored; what would change the result and is not implemented is refused.

Source: transformers 5.23, ``models/<family>/configuration_<family>.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgekit.architectures._config import FAMILIES, LIMITS, ModelConfig, check_config
from edgekit.architectures._hf_defaults import DEFAULTS
from edgekit.architectures._hf_rope import rope_from_hf
from edgekit.architectures._section import Section, short
from edgekit.architectures.found import refuse_other_weights
from edgekit.errors import InvalidFileError, UnsupportedModelError

GELU_TANH = ("gelu_pytorch_tanh", "gelu_new")
#: Families whose layers take turns; the window of the others is for every layer, or for none.
ALTERNATING = ("qwen2", "qwen3", "gemma2", "gemma3")
#: What is read besides the keys that have defaults.
_ROPE_KEYS = ("rope_scaling", "rope_parameters", "original_max_position_embeddings")


def config_from_hf(config: Mapping[str, Any], where: str) -> ModelConfig:
    """Hyper-parameters from a Hugging Face config.json.

    Args:
        config: the parsed JSON; of a multimodal Gemma 3 the ``text_config`` is taken.
        where: the file, for messages.

    Raises:
        UnsupportedModelError: a family, or a feature of one, that edgekit does not know.
        InvalidFileError: values of the wrong type, or sizes that no model can have.
    """
    family = _family(config, where)
    nested = family == "gemma3" and "text_config" in config
    given = Section(config, where).section("text_config") if nested else config
    # A key that transformers does not read for this family must not change what is computed.
    known = {key: given[key] for key in (*DEFAULTS[family], *_ROPE_KEYS) if key in given}
    c = Section(DEFAULTS[family] | known, where)
    _refuse_features(family, c, config)
    heads = c.integer("num_attention_heads")
    head_dim = c.integer("head_dim") if c.values["head_dim"] is not None else _head_dim(c, heads)
    width = c.integer("hidden_size")
    gemma = family.startswith("gemma")
    rope = rope_from_hf(family, c, head_dim)
    return check_config(
        ModelConfig(
            family=family,
            layers=c.integer("num_hidden_layers"),
            width=width,
            heads=heads,
            kv_heads=heads if c.values["num_key_value_heads"] is None else c.integer("num_key_value_heads"),
            head_dim=head_dim,
            ffn=c.integer("intermediate_size"),
            vocab=c.integer("vocab_size"),
            context=c.integer("max_position_embeddings"),
            norm_eps=c.number("rms_norm_eps"),
            attention_scale=_attention_scale(c, head_dim),
            activation=_activation(family, c),
            tied=c.flag("tie_word_embeddings"),
            attention_softcap=c.optional_number("attn_logit_softcapping"),
            output_softcap=c.optional_number("final_logit_softcapping"),
            embedding_scale=math.sqrt(max(width, 0)) if gemma else 1.0,
            **_biases(family, c),
            **_windows(family, c),
            **rope,
        ),
        where,
    )


def _family(config: Mapping[str, Any], where: str) -> str:
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family.name
    known = ", ".join(t for family in FAMILIES.values() for t in family.model_types)
    raise UnsupportedModelError(f"{where}: model_type is {short(model_type)}; edgekit knows {known}")


def _refuse_features(family: str, c: Section, config: Mapping[str, Any]) -> None:
    refuse_other_weights((), c.where, config)
    if c.values.get("use_bidirectional_attention"):
        c.refuse("use_bidirectional_attention", True, "causal attention")
    # transformers stores this for Gemma 3 and does not apply it.
    if family == "gemma3" and c.values["attn_logit_softcapping"] is not None:
        c.refuse("attn_logit_softcapping", c.values["attn_logit_softcapping"], "null for Gemma 3")


def _head_dim(c: Section, heads: int) -> int:
    width = c.integer("hidden_size")
    if heads < 1 or width % heads:
        raise InvalidFileError(f"{c.where}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return width // heads


def _attention_scale(c: Section, head_dim: int) -> float:
    base = c.number("query_pre_attn_scalar") if "query_pre_attn_scalar" in c.values else head_dim
    return base**-0.5 if base > 0 else 0.0  # check_config refuses the zero


def _activation(family: str, c: Section) -> Literal["silu", "gelu_tanh"]:
    name = c.values.get("hidden_activation") or c.values["hidden_act"]
    if name in ("silu", "swish"):
        return "silu"
    # Gemma's first release says "gelu" and means the approximation.
    if name in GELU_TANH or (family == "gemma" and name == "gelu"):
        return "gelu_tanh"
    c.refuse("hidden_act", name, ", ".join(("silu", *GELU_TANH)))


def _biases(family: str, c: Section) -> dict[str, Any]:
    if family == "qwen2":
        return {"qkv_bias": True}
    if family in ("mistral", "phi3"):  # transformers builds them without, whatever the file says
        return {}
    attention = c.flag("attention_bias")
    feed_forward = family == "llama" and c.flag("mlp_bias")
    return {"qkv_bias": attention, "attn_output_bias": attention, "ffn_bias": feed_forward}


def _windows(family: str, c: Section) -> dict[str, Any]:
    if family in ("llama", "gemma") or c.values["sliding_window"] is None:
        return {}
    if family.startswith("qwen") and not c.flag("use_sliding_window"):
        return {}
    layers = c.integer("num_hidden_layers")
    if not 1 <= layers <= LIMITS["layers"]:  # check_config says so; do not build a list of them here
        return {}
    slides = _sliding_layers(family, c, layers)
    if not any(slides):
        return {}
    return {"sliding_window": c.integer("sliding_window"), **_pattern(slides, c)}


def _sliding_layers(family: str, c: Section, layers: int) -> list[bool]:
    types = c.values["layer_types"]
    if family not in ALTERNATING:
        return [True] * layers
    if types is None and family in ("qwen2", "qwen3"):
        return [layer >= c.integer("max_window_layers") for layer in range(layers)]
    if types is None:
        every = 2 if family == "gemma2" else max(1, c.integer("sliding_window_pattern"))
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise InvalidFileError(f"{c.where}: layer_types has to be a list of {layers} names, one a layer")
    for name in types:
        if name not in ("sliding_attention", "full_attention"):
            c.refuse("layer_types", name, "sliding_attention and full_attention")
    return [name == "sliding_attention" for name in types]


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
