"""The rotary parameters of a Hugging Face config.json, in the dialects of transformers 4 and 5.

Source: transformers 5.23, ``modeling_rope_utils.py``, and for Gemma 3 and Phi 3 their own configurations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from edgekit.architectures._config import LIMITS, RopeScaling
from edgekit.architectures._section import Section
from edgekit.errors import InvalidFileError


@attrs.frozen
class RopeDialect:
    """What a family's config.json may say of rotation.

    Attributes:
        local: whether layers with a window have a base of their own (Gemma 3).
        partial: whether only a part of each head may rotate.
        longrope_names: other names of longrope.
        any_ramp: whether yarn's ramp may begin and end between elements (``truncate: false``, gpt-oss).
    """

    local: bool = False
    partial: bool = False
    longrope_names: tuple[str, ...] = ()
    any_ramp: bool = False


def rope_from_hf(dialect: RopeDialect, c: Section, head_dim: int) -> dict[str, Any]:
    """The fields of `ModelConfig` that say how queries and keys rotate."""
    local: dict[str, Any] = {}
    if dialect.local:
        parameters, local = _gemma3_rope(c)
    else:
        parameters = c.section("rope_scaling") or c.section("rope_parameters")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        c.refuse("rope_parameters", parameters, "one rotation for all layers of this family")
    p = Section({"rope_theta": c.values["rope_theta"], **parameters}, c.where)
    rotary_dim = _rotary_dim(dialect, c, p, head_dim)
    scaling = _scaling(dialect, c, p)
    return {"rope_theta": p.number("rope_theta"), "rope_scaling": scaling, "rotary_dim": rotary_dim, **local}


def _gemma3_rope(c: Section) -> tuple[dict[str, Any], dict[str, Any]]:
    nested = c.section("rope_parameters")
    if set(nested) - {"full_attention", "sliding_attention"}:
        c.refuse("rope_parameters", nested, "one object for full_attention, one for sliding_attention")
    parameters = Section(nested, c.where)
    full = parameters.section("full_attention") | c.section("rope_scaling")
    sliding = Section(
        {"rope_theta": c.values["rope_local_base_freq"], **parameters.section("sliding_attention")}, c.where
    )
    if _rope_type(sliding) != "default":
        c.refuse("rope_parameters of sliding_attention", sliding.values, "default there")
    return full, {"rope_theta_local": sliding.number("rope_theta")}


def _rope_type(p: Section) -> object:
    return p.values.get("rope_type", p.values.get("type", "default"))


def _rotary_dim(dialect: RopeDialect, c: Section, p: Section, head_dim: int) -> int:
    values = {"partial_rotary_factor": c.values["partial_rotary_factor"], **p.values}
    factor = Section(values, c.where).number("partial_rotary_factor")
    if not (factor == 1 or (dialect.partial and 0 < factor < 1)):
        c.refuse("partial_rotary_factor", factor, "up to 1" if dialect.partial else "1 for this family")
    return int(head_dim * factor)


def _scaling(dialect: RopeDialect, c: Section, p: Section) -> RopeScaling | None:
    kind = _rope_type(p)
    if kind in dialect.longrope_names:
        kind = "longrope"
    match kind:
        case "default":
            return None
        case "linear":
            return RopeScaling("linear", factor=Section({"factor": None, **p.values}, c.where).number("factor"))
        case "dynamic":
            factor = Section({"factor": None, **p.values}, c.where).number("factor")
            return RopeScaling("dynamic", factor, original_context=c.integer("max_position_embeddings"))
        case "llama3":
            return _llama3(c, p)
        case "longrope":
            return _longrope(c, p)
        case "yarn":
            return _yarn(dialect, c, p)
    c.refuse("rope_type", kind, "default, linear, dynamic, llama3, longrope and yarn")


def _llama3(c: Section, p: Section) -> RopeScaling:
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    given = Section(dict.fromkeys(keys) | dict(p.values), p.where)
    factor, low, high = (given.number(key) for key in keys)
    return RopeScaling("llama3", factor, low, high, original_context=_original_context(c, p))


def _longrope(c: Section, p: Section) -> RopeScaling:
    original = _original_context(c, p)
    factor = _factor(c, p, original)
    attention = p.optional_number("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        "longrope",
        factor,
        original_context=original,
        attention_factor=attention,
        long_factors=p.numbers("long_factor"),
        short_factors=p.numbers("short_factor"),
    )


def _yarn(dialect: RopeDialect, c: Section, p: Section) -> RopeScaling:
    truncate = p.values.get("truncate", True)
    if truncate is not True and not (dialect.any_ramp and truncate is False):
        c.refuse("truncate", p.values["truncate"], "true")
    original = _original_context(c, p)
    factor = _factor(c, p, original)
    attention = p.optional_number("attention_factor")
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        attention_factor=_yarn_attention(factor, p) if attention is None else attention,
        beta_fast=p.optional_number("beta_fast") or 32.0,
        beta_slow=p.optional_number("beta_slow") or 1.0,
        truncate=truncate,
    )


def _yarn_attention(factor: float, p: Section) -> float:
    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    over, under = p.optional_number("mscale") or 0, p.optional_number("mscale_all_dim") or 0
    return magnitude(over) / magnitude(under) if over > 0 and under > 0 else magnitude(1.0)


def _factor(c: Section, p: Section, original: int) -> float:
    factor = p.optional_number("factor")
    return c.integer("max_position_embeddings") / original if factor is None else factor


def _original_context(c: Section, p: Section) -> int:
    key = "original_max_position_embeddings"
    fallback = {key: c.values["max_position_embeddings"], **p.values}
    original = Section(c.values if key in c.values else fallback, c.where).integer(key)
    if not 2 <= original <= LIMITS["context"]:
        raise InvalidFileError(f"{c.where}: {key} is {original}, it has to be between 2 and {LIMITS['context']}")
    return original
