"""`ModelConfig` to a Hugging Face config.json that transformers 4 and 5 load."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import attrs

from edgekit.architectures._config import FAMILIES, ModelConfig
from edgekit.architectures._hf_config import ALTERNATING, GELU_TANH, config_from_hf
from edgekit.errors import UnsupportedModelError

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


#: Families whose class in transformers wants a width that is a multiple of the number of heads.
_WIDTH_OF_HEADS = ("llama", "gemma2", "gemma3")
#: Families that compute alike but for what their classes allow: Llama has all biases or none, Mistral none, Qwen 2
#: those of queries, keys and values; Mistral and Qwen 2 have sliding windows, and any width.
_ALIKE = {"llama": ("mistral", "qwen2"), "mistral": ("qwen2", "llama"), "qwen2": ("mistral", "llama")}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json that transformers 4 and 5 load as the same model (without token ids and dtype).

    A model that its family's class in transformers does not allow is written as one of a family that computes the same.

    Raises:
        UnsupportedModelError: transformers has no such model of that family; names what it cannot say.
    """
    try:
        return _hf_config(config)
    except UnsupportedModelError:
        for family in _ALIKE.get(config.family, ()):
            with contextlib.suppress(UnsupportedModelError):
                return _hf_config(attrs.evolve(config, family=family))
        raise


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    if config.family in _WIDTH_OF_HEADS and config.width % config.heads:
        raise UnsupportedModelError(
            f"transformers' {_CLASSES[config.family]} wants a width that is a multiple of its heads, and this model's "
            f"is {config.width} for {config.heads}; keep it in the format that it is in"
        )
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
    name = "silu" if config.activation == "silu" else GELU_TANH[0]
    both = config.family.startswith("gemma")
    return {"hidden_act": name, "hidden_activation": name} if both else {"hidden_act": name}


def _hf_windows(config: ModelConfig) -> dict[str, Any]:
    window = config.sliding_window
    if config.family in ("llama", "gemma"):
        return {}
    if config.family not in ALTERNATING:
        return {"sliding_window": window}
    full = [config.window(layer) is None for layer in range(config.layers)]
    types = ["full_attention" if f else "sliding_attention" for f in full]
    written: dict[str, Any] = {"sliding_window": window, "layer_types": types}
    if config.family.startswith("qwen"):
        written |= {"use_sliding_window": window is not None, "max_window_layers": sum(full)}
    elif config.family == "gemma3" and config.full_attention_every:  # transformers 4 reads this one
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
    return written
