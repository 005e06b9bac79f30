"""Hugging Face's config.json to `ModelConfig` and back.

Both dialects are read: transformers 4 (``rope_theta``, ``rope_scaling``, ``sliding_window_pattern``) and 5
(``rope_parameters``, ``layer_types``). What a file leaves out gets transformers' default for the family.
What transformers ignores is ignored; what would change the result and is not implemented is refused.

Source: transformers 5.23, ``models/<family>/configuration_<family>.py`` and ``modeling_rope_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, cast

import attrs

from edgekit.architectures._config import FAMILIES, LIMITS, ModelConfig, RopeScaling, check_config
from edgekit.errors import InvalidFileError, UnsupportedModelError

_COMMON: dict[str, Any] = {
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
_QWEN: dict[str, Any] = _COMMON | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA: dict[str, Any] = _COMMON | {
    "vocab_size": 256_000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
}
_GEMMA2: dict[str, Any] = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
#: What transformers assumes where config.json is silent.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _COMMON | {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048},
    "mistral": _COMMON
    | {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "phi3": _COMMON
    | {
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "gemma": _GEMMA
    | {
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_activation": None,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2
    | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
}
_GELU_TANH = ("gelu_pytorch_tanh", "gelu_new")
#: Families whose layers take turns; the window of the others is for every layer, or for none.
_ALTERNATING = ("qwen2", "qwen3", "gemma2", "gemma3")
#: What model_type stands for in ``architectures``.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


@attrs.frozen
class _Section:
    """A JSON object with typed access; every error names the file and the key."""

    values: Mapping[str, Any]
    where: str

    def integer(self, key: str) -> int:
        value = self.values[key]
        if type(value) is not int or abs(value) >= 1 << 63:
            self._wrong(key, value, "an integer")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if not _is_number(value):
            self._wrong(key, value, "a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if type(value) is not bool:
            self._wrong(key, value, "true or false")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            self._wrong(key, value, "a list of finite numbers")
        return tuple(float(v) for v in value)

    def section(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            self._wrong(key, value, "an object")
        return dict(value)

    def refuse(self, key: str, value: object, allowed: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.where}: {key} is {_short(value)}; edgekit knows {allowed}")

    def _wrong(self, key: str, value: object, wanted: str) -> NoReturn:
        raise InvalidFileError(f"{self.where}: {key} is {_short(value)}, it has to be {wanted}; the file is damaged")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(cast(float, value)) <= 1e300  # false for NaN


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
    given = _Section(config, where).section("text_config") if nested else dict(config)
    c = _Section(DEFAULTS[family] | given, where)
    _refuse_features(c, config)
    heads = c.integer("num_attention_heads")
    head_dim = c.integer("head_dim") if c.values["head_dim"] is not None else _head_dim(c, heads)
    width = c.integer("hidden_size")
    gemma = family.startswith("gemma")
    rope = _rope(family, c, head_dim)
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
    raise UnsupportedModelError(f"{where}: model_type is {_short(model_type)}; edgekit knows {known}")


def _refuse_features(c: _Section, config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        c.refuse("quantization_config", config["quantization_config"], "unquantized weights here")
    if c.values.get("use_bidirectional_attention"):
        c.refuse("use_bidirectional_attention", True, "causal attention")
    # transformers stores this for Gemma 3 and does not apply it.
    if config.get("model_type") in FAMILIES["gemma3"].model_types and c.values["attn_logit_softcapping"] is not None:
        c.refuse("attn_logit_softcapping", c.values["attn_logit_softcapping"], "null for Gemma 3")


def _head_dim(c: _Section, heads: int) -> int:
    width = c.integer("hidden_size")
    if heads < 1 or width % heads:
        raise InvalidFileError(f"{c.where}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return width // heads


def _attention_scale(c: _Section, head_dim: int) -> float:
    base = c.number("query_pre_attn_scalar") if "query_pre_attn_scalar" in c.values else head_dim
    return base**-0.5 if base > 0 else 0.0  # check_config refuses the zero


def _activation(family: str, c: _Section) -> Literal["silu", "gelu_tanh"]:
    name = c.values.get("hidden_activation") or c.values["hidden_act"]
    if name in ("silu", "swish"):
        return "silu"
    # Gemma's first release says "gelu" and means the approximation.
    if name in _GELU_TANH or (family == "gemma" and name == "gelu"):
        return "gelu_tanh"
    c.refuse("hidden_act", name, ", ".join(("silu", *_GELU_TANH)))


def _biases(family: str, c: _Section) -> dict[str, Any]:
    if family == "qwen2":
        return {"qkv_bias": True}
    if family in ("mistral", "phi3"):  # transformers builds them without, whatever the file says
        return {}
    attention = c.flag("attention_bias")
    feed_forward = family == "llama" and c.flag("mlp_bias")
    return {"qkv_bias": attention, "attn_output_bias": attention, "ffn_bias": feed_forward}


def _windows(family: str, c: _Section) -> dict[str, Any]:
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


def _sliding_layers(family: str, c: _Section, layers: int) -> list[bool]:
    types = c.values["layer_types"]
    if family not in _ALTERNATING:
        return [True] * layers
    if types is None and family in ("qwen2", "qwen3"):
        return [layer >= c.integer("max_window_layers") for layer in range(layers)]
    if types is None:
        every = max(1, c.integer("sliding_window_pattern"))
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise InvalidFileError(f"{c.where}: layer_types has to be a list of {layers} names, one a layer")
    for name in types:
        if name not in ("sliding_attention", "full_attention"):
            c.refuse("layer_types", name, "sliding_attention and full_attention")
    return [name == "sliding_attention" for name in types]


def _pattern(slides: Sequence[bool], c: _Section) -> dict[str, int]:
    if all(slides):
        return {}
    first = slides.index(True)
    if all(slides[first:]):
        return {"full_attention_first": first}
    every = slides.index(False) + 1
    if list(slides) == [(layer + 1) % every != 0 for layer in range(len(slides))]:
        return {"full_attention_every": every}
    c.refuse("layer_types", c.values["layer_types"], "full attention in the first layers, or in every n-th one")


def _rope(family: str, c: _Section, head_dim: int) -> dict[str, Any]:
    local: dict[str, Any] = {}
    if family == "gemma3":
        parameters, local = _gemma3_rope(c)
    else:
        parameters = c.section("rope_scaling") or c.section("rope_parameters")
    p = _Section({"rope_theta": c.values["rope_theta"], **parameters}, c.where)
    rotary_dim = _rotary_dim(family, c, p, head_dim)
    scaling = _scaling(family, c, p)
    return {"rope_theta": p.number("rope_theta"), "rope_scaling": scaling, "rotary_dim": rotary_dim, **local}


def _gemma3_rope(c: _Section) -> tuple[dict[str, Any], dict[str, Any]]:
    nested = c.section("rope_parameters")
    if set(nested) - {"full_attention", "sliding_attention"}:
        c.refuse("rope_parameters", nested, "one object for full_attention, one for sliding_attention")
    parameters = _Section(nested, c.where)
    full = parameters.section("full_attention") | c.section("rope_scaling")
    sliding = _Section(
        {"rope_theta": c.values["rope_local_base_freq"], **parameters.section("sliding_attention")}, c.where
    )
    if _rope_type(sliding) != "default":
        c.refuse("rope_parameters of sliding_attention", sliding.values, "default there")
    return full, {"rope_theta_local": sliding.number("rope_theta")}


def _rope_type(p: _Section) -> object:
    return p.values.get("rope_type", p.values.get("type", "default"))


def _rotary_dim(family: str, c: _Section, p: _Section, head_dim: int) -> int:
    values = {"partial_rotary_factor": c.values["partial_rotary_factor"], **p.values}
    factor = _Section(values, c.where).number("partial_rotary_factor")
    if not (factor == 1 or (family == "phi3" and 0 < factor < 1)):
        c.refuse("partial_rotary_factor", factor, "up to 1 for phi3, and 1 for the other families")
    return int(head_dim * factor)


def _scaling(family: str, c: _Section, p: _Section) -> RopeScaling | None:
    kind = _rope_type(p)
    if family == "phi3" and kind in ("su", "yarn"):  # its older names
        kind = "longrope"
    match kind:
        case "default":
            return None
        case "linear":
            return RopeScaling("linear", factor=_Section({"factor": None, **p.values}, c.where).number("factor"))
        case "llama3":
            return _llama3(c, p)
        case "longrope":
            return _longrope(c, p)
        case "yarn":
            return _yarn(c, p)
    c.refuse("rope_type", kind, "default, linear, llama3, longrope and yarn")


def _llama3(c: _Section, p: _Section) -> RopeScaling:
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    given = _Section(dict.fromkeys(keys) | dict(p.values), p.where)
    factor, low, high = (given.number(key) for key in keys)
    return RopeScaling("llama3", factor, low, high, original_context=_original_context(c, p))


def _longrope(c: _Section, p: _Section) -> RopeScaling:
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


def _yarn(c: _Section, p: _Section) -> RopeScaling:
    if p.values.get("truncate", True) is not True:
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
    )


def _yarn_attention(factor: float, p: _Section) -> float:
    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    over, under = p.optional_number("mscale") or 0, p.optional_number("mscale_all_dim") or 0
    return magnitude(over) / magnitude(under) if over > 0 and under > 0 else magnitude(1.0)


def _factor(c: _Section, p: _Section, original: int) -> float:
    factor = p.optional_number("factor")
    return c.integer("max_position_embeddings") / original if factor is None else factor


def _original_context(c: _Section, p: _Section) -> int:
    key = "original_max_position_embeddings"
    fallback = {key: c.values["max_position_embeddings"], **p.values}
    original = _Section(c.values if key in c.values else fallback, c.where).integer(key)
    if not 2 <= original <= LIMITS["context"]:
        raise InvalidFileError(f"{c.where}: {key} is {original}, it has to be between 2 and {LIMITS['context']}")
    return original


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json that transformers 4 and 5 load as the same model (without token ids and dtype).

    Raises:
        UnsupportedModelError: transformers has no such model of that family; names what it cannot say.
    """
    written = _hf_sizes(config) | _hf_activation(config) | _hf_windows(config) | _hf_family(config)
    read = config_from_hf(written, f"{config.family} model")
    lost = [field for field, value in _essence(config).items() if not _same(value, _essence(read)[field])]
    if lost:
        raise UnsupportedModelError(
            f"a config.json of the {config.family} family cannot say this model's {', '.join(lost)}; "
            "keep it in the format that it is in"
        )
    return written


def _essence(config: ModelConfig) -> dict[str, Any]:
    """What the forward pass sees: the windows of the layers instead of the pattern that makes them."""
    fields = attrs.asdict(config, recurse=False)
    for hidden in ("name", "full_attention_every", "full_attention_first"):
        del fields[hidden]
    return fields | {"sliding_window": [config.window(layer) for layer in range(config.layers)]}


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)  # 1/sqrt(x) is not always x ** -0.5
    return a == b


def _hf_sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": [_CLASSES[config.family]],
        "model_type": FAMILIES[config.family].model_types[0],
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
        "rope_scaling": _hf_scaling(config),
    }


def _hf_activation(config: ModelConfig) -> dict[str, Any]:
    name = "silu" if config.activation == "silu" else _GELU_TANH[0]
    both = config.family.startswith("gemma")
    return {"hidden_act": name, "hidden_activation": name} if both else {"hidden_act": name}


def _hf_windows(config: ModelConfig) -> dict[str, Any]:
    window = config.sliding_window
    if config.family in ("llama", "gemma"):
        return {}
    if config.family not in _ALTERNATING:
        return {"sliding_window": window}
    full = [config.window(layer) is None for layer in range(config.layers)]
    types = ["full_attention" if f else "sliding_attention" for f in full]
    written: dict[str, Any] = {"sliding_window": window, "layer_types": types}
    if config.family.startswith("qwen"):
        written |= {"use_sliding_window": window is not None, "max_window_layers": sum(full)}
    elif config.full_attention_every:  # transformers 4 reads this one
        written["sliding_window_pattern"] = config.full_attention_every
    return written


def _hf_family(config: ModelConfig) -> dict[str, Any]:
    match config.family:
        case "llama":
            return {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}
        case "qwen3" | "gemma":
            return {"attention_bias": config.qkv_bias}
        case "phi3":
            return _hf_phi3(config)
        case "gemma2" | "gemma3":
            return _hf_gemma(config)
    return {}


def _hf_phi3(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    original = {} if scaling is None else {"original_max_position_embeddings": scaling.original_context}
    return {"partial_rotary_factor": _fraction(config.rotary_dim, config.head_dim), **original}


def _hf_gemma(config: ModelConfig) -> dict[str, Any]:
    local = {} if config.rope_theta_local is None else {"rope_local_base_freq": config.rope_theta_local}
    return {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": _pre_attention_scalar(config.attention_scale),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.output_softcap,
        **local,
    }


def _fraction(part: int, whole: int) -> float:
    """The ratio, such that ``int(whole * ratio)`` gives `part` back."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, math.inf)


def _pre_attention_scalar(scale: float) -> int | float:
    """The number whose ``** -0.5`` is `scale`: the integer, where there is one."""
    base = scale**-2
    return round(base) if math.isclose(round(base), base, rel_tol=1e-12) else base


def _hf_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
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
    return written
