"""A model's hyper-parameters as mlx-lm reads them, and the models that mlx-lm computes differently.

mlx-lm's model classes read some keys of config.json and ignore the others, so that a model that needs an ignored key
loads and gives wrong results. Models that would be wrong at any length are refused here. A sliding window that mlx-lm
ignores changes nothing until a sequence is longer than the window: such a model is accepted, with a note.

Source: mlx-lm 0.32.2, ``models/<model type>.py``; compared with edgekit's forward pass, family by family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from edgekit.architectures import ModelConfig
from edgekit.architectures.hf import hf_config
from edgekit.errors import UnsupportedModelError
from edgekit_mlx.ops import encoder_of

#: Families whose sliding windows mlx-lm ignores: it computes full attention instead.
_NO_WINDOWS = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "ministral3", "mixtral"),
    *("granite", "granitemoehybrid", "granite4_dense", "granite4_moe", "lfm2", "lfm2_moe", "olmo2", "olmoe"),
    *("qwen3_moe", "smollm3"),
    *("qwen3_next", "qwen3_5", "qwen3_5_moe", "phimoe", "nemotron_h", "nemotron_h_moe"),
)
_WINDOWS = ("gemma3", "gemma4", "gpt_oss", "llama4_text")
#: The families whose logits were compared with edgekit's forward pass.
COMPARED = (*_NO_WINDOWS, *_WINDOWS)
_DELTA = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
_HYBRIDS = ("granitemoehybrid", "granite4_dense", "granite4_moe")  # of one class
_GRANITE = ("granite", *_HYBRIDS)
_NEMOTRON = ("nemotron_h", "nemotron_h_moe")
#: Families for which mlx-lm has a class of another name; its llama4_text is another model, without experts.
_CLASSES = {
    "gemma4": "gemma4_text",
    "granite4_dense": "granitemoehybrid",
    "granite4_moe": "granitemoehybrid",
    "llama4_text": "llama4",
    "nemotron_h_moe": "nemotron_h",
}
#: ``model_type`` of the families whose logits were compared; in others mlx-lm may name tensors differently.
MODEL_TYPES = (
    *(_CLASSES.get(family, family) for family in COMPARED),
    *("gemma3_text", "gemma4", "qwen3_5_text", "qwen3_5_moe_text"),
    "bert",  # which edgekit's runtime computes; mlx-lm has no encoder
)
#: The epsilon of mlx-lm's llama4 for queries and keys, whatever the model's is; and up to which the two agree.
_LLAMA4_EPS, _LLAMA4_CLOSE = 1e-6, 1e-5
#: Families whose mlx-lm classes ignore ``rope_scaling``.
_NO_SCALING = ("gemma", "gemma2", "mixtral", "lfm2", "lfm2_moe", *_HYBRIDS)
#: Families for which mlx-lm takes the width divided by the number of heads as head_dim.
_HEADS_FILL_WIDTH = ("qwen2", "phi3", "phimoe", "mixtral", "lfm2", "lfm2_moe", *_GRANITE)
_TIED = ("gemma", "gemma2", "lfm2", "lfm2_moe")
_UNTIED = ("gpt_oss", "phimoe", "llama4_text", *_NEMOTRON)
_PARTLY_ROTATING = ("phi3", *_DELTA)
#: Which biases the classes have: of Q, K and V, of the attention's output, of the feed-forward network.
_BIASES = {
    "llama": "any", "smollm3": "any", "granite": "any",
    "olmo2": "attention", "olmoe": "attention", **dict.fromkeys((*_HYBRIDS, *_DELTA), "attention"),
    "qwen2": "qkv", "gpt_oss": "both", "phimoe": "both", "nemotron_h": "ffn",
}  # fmt: skip
_ALLOWED_BIASES = {
    "none": {(False, False, False)},
    "qkv": {(True, False, False)},
    "both": {(True, True, False)},
    "ffn": {(False, False, f) for f in (False, True)},
    "attention": {(a, a, False) for a in (False, True)},
    "any": {(a, a, f) for a in (False, True) for f in (False, True)},
}
#: Keys that mlx-lm's classes require, and Hugging Face's files may omit.
_ALWAYS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_next": {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_5": {"model_type": "qwen3_5"},
    "qwen3_5_moe": {"model_type": "qwen3_5_moe"},
    "lfm2": {"block_multiple_of": 1, "block_ffn_dim_multiplier": 1.0},
    **{family: {"time_step_limit": [0.0, 3.0e38]} for family in _HYBRIDS},
    "nemotron_h_moe": {"n_shared_experts": 1},
}


def mlx_config(config: ModelConfig, where: str) -> dict[str, Any]:
    """Return the config.json with which mlx-lm computes a model, without quantization, token ids and dtype.

    Args:
        config: the model's hyper-parameters.
        where: the name of the model in messages.

    Raises:
        UnsupportedModelError: mlx-lm does not support the family, or not all of the model; or the model is an encoder
            with an operation that edgekit's runtime lacks. Names what is unsupported.
    """
    if encoder_of(config) is not None:
        return hf_config(config)
    for problem in _problems(config):
        raise UnsupportedModelError(
            f"{where}: mlx-lm would compute another model: {problem}; run it with another runtime (GGUF, OpenVINO, "
            "numpy)"
        )
    written = hf_config(config) | _ALWAYS.get(config.family, {})
    if config.family in ("llama", "mistral"):
        written.pop("sliding_window", None)  # ignored without layer_types; with them a full layer is required
    if isinstance(written.get("rope_scaling"), dict):
        written["rope_scaling"] = written["rope_scaling"] | {"type": written["rope_scaling"]["rope_type"]}
    own = _OWN.get(config.family, _nothing)(config, written)
    return own if "text_config" in own else written | own


def _nothing(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _gemma3(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sliding_window_pattern": config.full_attention_every if config.sliding_window else 1,
        "sliding_window": config.sliding_window or config.context,
        "rope_local_base_freq": config.rope_theta_local or config.rope_theta,
    }


def _delta(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    return {"full_attention_interval": _interval(config), "intermediate_size": config.ffn}


def _lfm2(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    return {"block_dim": config.width, "block_ff_dim": config.ffn}


def _granite_hybrid(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """Without a value mlx-lm applies rotary embeddings."""
    return {"position_embedding_type": written["position_embedding_type"] or "nope"}


def _ministral3(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """Express the attention factor in mlx-lm's terms: 1 + mscale * log(factor) / 10."""
    parameters, scaling = dict(written["rope_parameters"]), config.rope_scaling
    assert scaling is not None  # the family has no other
    if scaling.factor > 1:
        mscale = (scaling.attention_factor - 1) / (0.1 * math.log(scaling.factor))
        parameters |= {"mscale": mscale, "mscale_all_dim": 0.0}
    return {"rope_parameters": parameters, "layer_types": ["full_attention"] * config.layers}


def _gemma4(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """Without windows mlx-lm wants a number all the same."""
    return {"sliding_window": config.sliding_window or config.context}


def _nemotron(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """A pattern of letters would count instead of the list of layers."""
    return {
        "attention_bias": False,
        "mamba_proj_bias": bool(config.own["proj_bias"]),
        "mlp_bias": config.ffn_bias,
        "hybrid_override_pattern": None,
        "time_step_limit": [0.0, 3.0e38],
    }


def _llama4(config: ModelConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    text = {**written, "attention_bias": False, "interleave_moe_layer_step": _expert_step(config)}
    return {"model_type": "llama4", "text_config": text}


def _expert_step(config: ModelConfig) -> int:
    """Return n if every n-th layer of Llama 4 has experts; more than there are layers if none has."""
    sparse = _flags(config, "sparse")
    return sparse.index(True) + 1 if any(sparse) else config.layers + 1


#: Families for which mlx-lm reads some keys differently.
_OWN = {
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    **dict.fromkeys(_HYBRIDS, _granite_hybrid),
    "lfm2": _lfm2,
    "llama4_text": _llama4,
    "ministral3": _ministral3,
    **dict.fromkeys(_NEMOTRON, _nemotron),
    **dict.fromkeys(_DELTA, _delta),
}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of mlx-lm's in Hugging Face's terms."""
    limits = config.get("time_step_limit")
    unbounded = isinstance(limits, list) and len(limits) == 2 and limits[0] == 0 and limits[1] >= 1e30
    return {key: value for key, value in config.items() if not (unbounded and key == "time_step_limit")}


def faithful_context(config: ModelConfig) -> int:
    """Return the largest number of tokens that mlx-lm computes correctly: the context, or a window that it ignores."""
    window = config.sliding_window
    if window is None or config.family not in _NO_WINDOWS:
        return config.context
    return config.context if all(config.window(layer) is None for layer in range(config.layers)) else window


def ramp_note(config: ModelConfig) -> str:
    """Return the note on rotation for the user, or an empty string."""
    scaling = config.rope_scaling
    if scaling is None or scaling.truncate:
        return ""
    return (
        "mlx-lm rounds the borders of yarn's ramp, which this model does not (truncate: false): its logits lie up to a "
        "hundredth of their standard deviation from transformers' (0.0024 on a small random model)"
    )


def norm_note(config: ModelConfig) -> str:
    """Return the note on the norm of queries and keys for the user, or an empty string."""
    if config.family != "llama4_text" or not config.own["unit_norm"] or config.norm_eps == _LLAMA4_EPS:
        return ""
    return (
        f"mlx-lm normalizes queries and keys with an epsilon of {_LLAMA4_EPS:g}, which is {config.norm_eps:g} in this "
        "model: its logits lie up to a ten-thousandth of their standard deviation from transformers'"
    )


def note(config: ModelConfig) -> str:
    """Return a note for the user on how mlx-lm's results differ from the model's; empty if they do not."""
    length = faithful_context(config)
    if length >= config.context:
        return ""
    return (
        f"mlx-lm has no sliding window for {config.family}: beyond {length} tokens it computes otherwise than the "
        f"model was trained; edgekit's runtime stops there"
    )


def encoder_note(config: ModelConfig) -> str:
    """Return the note on who runs an encoder for the user; empty for a decoder."""
    if encoder_of(config) is None:
        return ""
    return f"mlx-lm has no encoders: run this {config.family} model with edgekit's runtime mlx (embed)"


def _problems(config: ModelConfig) -> Iterator[str]:
    family = config.family
    if family not in COMPARED:
        yield f"edgekit has not compared the family {family} with it"
        return
    yield from _attention_problems(config)
    yield from _layer_problems(config)
    yield from _rope_problems(config)
    if config.activation != ("gelu_tanh" if family.startswith("gemma") else "silu"):
        yield f"it has no {config.activation} for {family}"
    if family in _TIED and not config.tied:
        yield f"its {family} has no output matrix of its own"
    if family in _UNTIED and config.tied:
        yield f"its {family} has an output matrix of its own"
    softcaps = config.attention_softcap is not None, config.output_softcap is not None
    if softcaps != ((True, True) if family == "gemma2" else (False, family == "gemma4" and softcaps[1])):
        yield "soft caps on scores and logits are Gemma 2's alone"
    expected = math.sqrt(config.width) if family.startswith("gemma") else 1.0
    if family not in _GRANITE and not math.isclose(config.embedding_scale, expected, rel_tol=1e-6):
        yield f"embeddings are multiplied by {config.embedding_scale:g}"


def _attention_problems(config: ModelConfig) -> Iterator[str]:
    family = config.family
    biases = (config.qkv_bias, config.attn_output_bias, config.ffn_bias)
    if biases not in _ALLOWED_BIASES[_BIASES.get(family, "none")]:
        yield f"its {family} has no such biases"
    if family in _HEADS_FILL_WIDTH and config.head_dim * config.heads != config.width:
        yield f"its {family} has heads of width / heads"
    every, window = config.full_attention_every, config.sliding_window
    if family == "gemma3" and window and (config.full_attention_first or not 0 < every <= config.layers):
        yield "its gemma3 has a full layer at the end of every so many layers"
    plain = math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-6)
    if family not in ("gemma2", "gemma3", "gemma4", *_GRANITE) and not plain:
        yield f"scores are multiplied by {config.attention_scale:g}"


def _layer_problems(config: ModelConfig) -> Iterator[str]:
    """Find arrangements of layers that mlx-lm's classes cannot build."""
    family = config.family
    if family in _DELTA and not _interval(config):
        yield f"its {family} has a layer with attention at the end of every so many layers"
    if family in ("lfm2", "lfm2_moe") and len(set(_flags(config, "convolves"))) < 2:
        yield f"its {family} has layers with attention and layers with a convolution"
    if family == "granitemoehybrid" and config.own.get("groups") != 1:
        yield "it normalizes all groups of a Mamba layer together, which the model does one by one"
    if family == "gpt_oss" and len({config.window(layer) is None for layer in range(config.layers)}) < 2:
        yield "its gpt_oss has layers with a window and layers without"
    if family == "gemma4" and not config.own["keys_as_values"] and config.own["global_kv_heads"] != config.kv_heads:
        yield "its gemma4 has the same number of key heads in all layers that have values"
    if family == "phimoe" and not config.own["output_bias"]:
        yield "its phimoe has a bias of the output matrix"
    if family in _NEMOTRON:
        yield from _nemotron_problems(config)
    if family == "llama4_text":
        yield from _llama4_problems(config)


def _nemotron_problems(config: ModelConfig) -> Iterator[str]:
    own, kinds = config.own, config.own["kinds"]
    if not isinstance(kinds, tuple) or not {"mamba", "attention"} <= set(kinds):
        yield f"its {config.family} has layers with attention and layers with Mamba"
    if own.get("normalized") and own["experts_used"] == 1:
        yield "it does not normalize the weight of a single expert"


def _llama4_problems(config: ModelConfig) -> Iterator[str]:
    own, layers = config.own, range(config.layers)
    fourth = tuple((layer + 1) % 4 != 0 for layer in layers)
    if config.layers < 4:
        yield f"its llama4 has 4 layers or more, this one {config.layers}"
    if own["experts_used"] != 1:
        yield f"its llama4 has one expert for a token, this one {own['experts_used']}"
    if (own["rotates"], own["chunked"]) != (fourth, fourth):
        yield "its llama4 has full attention without positions in every fourth layer, chunks with them in the others"
    if own["unit_norm"] and config.norm_eps > _LLAMA4_CLOSE:
        yield f"it normalizes queries and keys with an epsilon of {_LLAMA4_EPS:g}, this model with {config.norm_eps:g}"
    sparse, step = _flags(config, "sparse"), _expert_step(config)
    if sparse != tuple((layer + 1) % step == 0 for layer in layers):
        yield "its llama4 has experts in the last of every so many layers"


def _flags(config: ModelConfig, name: str) -> tuple[bool, ...]:
    flags = config.own.get(name)
    return flags if isinstance(flags, tuple) else ()


def _interval(config: ModelConfig) -> int:
    """Return n if every n-th layer attends and the others recur, else 0."""
    recurrent = _flags(config, "recurrent")
    every = recurrent.index(False) + 1 if False in recurrent else 0
    regular = all(flag == bool((layer + 1) % every) for layer, flag in enumerate(recurrent)) if every > 1 else False
    return every if regular else 0


def _rope_problems(config: ModelConfig) -> Iterator[str]:
    scaling, family = config.rope_scaling, config.family
    if config.rotary_dim != config.head_dim and family not in _PARTLY_ROTATING:
        yield f"only {config.rotary_dim} of {config.head_dim} elements of a head rotate"
    if config.rope_theta_local is not None and family not in ("gemma3", "gemma4"):
        yield "sliding layers have a rotary base of their own"
    if scaling is None or family == "gemma4":  # whose factors say which part of a head rotates
        return
    if family in _NO_SCALING:
        yield f"its {family} takes no rope scaling"
    elif scaling.kind == "longrope":
        yield "it applies longrope's long factors to short sequences too"
    elif family == "phi3" and scaling.kind != "linear":
        yield f"its phi3 takes no {scaling.kind} rope scaling"
    elif scaling.kind == "dynamic" and scaling.original_context != config.context:
        yield "dynamic rope scaling begins at the model's context"
    elif (
        family != "ministral3"
        and scaling.kind == "yarn"
        and not math.isclose(scaling.attention_factor, _yarn_factor(scaling.factor))
    ):
        yield f"yarn's attention factor {scaling.attention_factor:g} is not that of its stretch"


def _yarn_factor(stretch: float) -> float:
    return 1.0 if stretch <= 1 else 0.1 * math.log(stretch) + 1.0


def without_windows(config: ModelConfig) -> ModelConfig:
    """Return the configuration that mlx-lm computes: full attention in families whose windows it ignores."""
    if config.family not in _NO_WINDOWS:
        return config
    return attrs.evolve(config, sliding_window=None, full_attention_every=0, full_attention_first=0)


__all__ = [
    "COMPARED",
    "MODEL_TYPES",
    "encoder_note",
    "faithful_context",
    "mlx_config",
    "norm_note",
    "note",
    "plain_config",
    "ramp_note",
    "without_windows",
]
