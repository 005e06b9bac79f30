"""A model's hyper-parameters as mlx-lm reads them, and the models that mlx-lm computes differently.

mlx-lm's model classes read some keys of config.json and ignore the others, so that a model that needs an ignored key
loads and gives wrong results. Models that would be wrong at any length are refused here. A sliding window that mlx-lm
ignores changes nothing until a sequence is longer than the window: such a model is accepted, with a note.

Source: mlx-lm 0.32.2, ``models/<model type>.py``; compared with edgekit's forward pass, family by family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs

from edgekit.architectures import ModelConfig
from edgekit.architectures.hf import hf_config
from edgekit.errors import UnsupportedModelError

#: Families whose sliding windows mlx-lm ignores: it computes full attention instead.
_NO_WINDOWS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2")
#: ``model_type`` of the families whose logits were compared; in others mlx-lm may name tensors differently.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3", "gemma3_text")
#: Families whose mlx-lm classes ignore ``rope_scaling``.
_NO_SCALING = ("gemma", "gemma2")
#: Families for which mlx-lm takes the width divided by the number of heads as head_dim.
_HEADS_FILL_WIDTH = ("qwen2", "phi3")
_TIED = ("gemma", "gemma2")


def mlx_config(config: ModelConfig, where: str) -> dict[str, Any]:
    """Return the config.json with which mlx-lm computes a model, without quantization, token ids and dtype.

    Args:
        config: the model's hyper-parameters.
        where: the name of the model in messages.

    Raises:
        UnsupportedModelError: mlx-lm does not support the family, or not all of the model; names what is unsupported.
    """
    for problem in _problems(config):
        raise UnsupportedModelError(
            f"{where}: mlx-lm would compute another model: {problem}; run it with another runtime (GGUF, OpenVINO, "
            "numpy)"
        )
    written = hf_config(config)
    if config.family in ("llama", "mistral"):
        written.pop("sliding_window", None)  # ignored without layer_types; with them a full layer is required
    if isinstance(written.get("rope_scaling"), dict):
        written["rope_scaling"] = written["rope_scaling"] | {"type": written["rope_scaling"]["rope_type"]}
    if config.family == "gemma3":
        written["sliding_window_pattern"] = config.full_attention_every if config.sliding_window else 1
        written["sliding_window"] = config.sliding_window or config.context
        written["rope_local_base_freq"] = config.rope_theta_local or config.rope_theta
    return written


def faithful_context(config: ModelConfig) -> int:
    """Return the largest number of tokens that mlx-lm computes correctly: the context, or a window that it ignores."""
    window = config.sliding_window
    if window is None or config.family not in _NO_WINDOWS:
        return config.context
    return config.context if all(config.window(layer) is None for layer in range(config.layers)) else window


def note(config: ModelConfig) -> str:
    """Return a note for the user on how mlx-lm's results differ from the model's; empty if they do not."""
    length = faithful_context(config)
    if length >= config.context:
        return ""
    return (
        f"mlx-lm has no sliding window for {config.family}: beyond {length} tokens it computes otherwise than the "
        f"model was trained; edgekit's runtime stops there"
    )


def _problems(config: ModelConfig) -> Iterator[str]:
    family = config.family
    if family not in (*_NO_WINDOWS, "gemma3"):
        yield f"edgekit has not compared the family {family} with it"
        return
    yield from _attention_problems(config)
    yield from _rope_problems(config)
    if config.activation != ("gelu_tanh" if family.startswith("gemma") else "silu"):
        yield f"it has no {config.activation} for {family}"
    if family in _TIED and not config.tied:
        yield f"its {family} has no output matrix of its own"
    softcaps = config.attention_softcap is not None, config.output_softcap is not None
    if softcaps != ((True, True) if family == "gemma2" else (False, False)):
        yield "soft caps on scores and logits are Gemma 2's alone"
    expected = math.sqrt(config.width) if family.startswith("gemma") else 1.0
    if not math.isclose(config.embedding_scale, expected, rel_tol=1e-6):
        yield f"embeddings are multiplied by {config.embedding_scale:g}"


def _attention_problems(config: ModelConfig) -> Iterator[str]:
    family = config.family
    biases = (config.qkv_bias, config.attn_output_bias, config.ffn_bias)
    allowed = {
        "llama": {(a, a, f) for a in (False, True) for f in (False, True)},
        "mistral": {(False, False, False)},
        "qwen2": {(True, False, False)},
    }
    if biases not in allowed.get(family, {(False, False, False)}):
        yield f"its {family} has no such biases"
    if family in _HEADS_FILL_WIDTH and config.head_dim * config.heads != config.width:
        yield f"its {family} has heads of width / heads"
    every, window = config.full_attention_every, config.sliding_window
    if family == "gemma3" and window and (config.full_attention_first or not 0 < every <= config.layers):
        yield "its gemma3 has a full layer at the end of every so many layers"
    plain = math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-6)
    if family not in ("gemma2", "gemma3") and not plain:
        yield f"scores are multiplied by {config.attention_scale:g}"


def _rope_problems(config: ModelConfig) -> Iterator[str]:
    scaling, family = config.rope_scaling, config.family
    if config.rotary_dim != config.head_dim and family != "phi3":
        yield f"only {config.rotary_dim} of {config.head_dim} elements of a head rotate"
    if config.rope_theta_local is not None and family != "gemma3":
        yield "sliding layers have a rotary base of their own"
    if scaling is None:
        return
    if family in _NO_SCALING:
        yield f"its {family} takes no rope scaling"
    elif scaling.kind == "longrope":
        yield "it applies longrope's long factors to short sequences too"
    elif family == "phi3" and scaling.kind != "linear":
        yield f"its phi3 takes no {scaling.kind} rope scaling"
    elif scaling.kind == "dynamic" and scaling.original_context != config.context:
        yield "dynamic rope scaling begins at the model's context"
    elif scaling.kind == "yarn" and not math.isclose(scaling.attention_factor, _yarn_factor(scaling.factor)):
        yield f"yarn's attention factor {scaling.attention_factor:g} is not that of its stretch"


def _yarn_factor(stretch: float) -> float:
    return 1.0 if stretch <= 1 else 0.1 * math.log(stretch) + 1.0


def without_windows(config: ModelConfig) -> ModelConfig:
    """Return the configuration that mlx-lm computes: full attention in families whose windows it ignores."""
    if config.family not in _NO_WINDOWS:
        return config
    return attrs.evolve(config, sliding_window=None, full_attention_every=0, full_attention_first=0)


__all__ = ["MODEL_TYPES", "faithful_context", "mlx_config", "note", "without_windows"]
