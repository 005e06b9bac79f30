"""Small configurations for every family and every feature in which families differ, for the checks of formats."""

from __future__ import annotations

import math
from typing import Any

from edgekit.architectures import RopeScaling

_FACTORS = tuple(1 + 0.125 * i for i in range(8))
_GEMMA: dict[str, Any] = {"activation": "gelu_tanh", "embedding_scale": 8.0, "tied": True}
#: Label -> changes to `edgekit.testing._trips.small_config`.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tied": True},
    "llama, with biases": {"qkv_bias": True, "attn_output_bias": True, "ffn_bias": True},
    "llama, linear rope scaling": {"rope_scaling": RopeScaling("linear", 4.0)},
    "mistral": {"family": "mistral", "sliding_window": 32},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "rope_theta": 1e6},
    "qwen2, yarn": {
        "family": "qwen2",
        "qkv_bias": True,
        "rope_scaling": RopeScaling("yarn", 4.0, original_context=32, attention_factor=0.1 * math.log(4) + 1),
    },
    "qwen3": {"family": "qwen3", "head_dim": 32, "rotary_dim": 32, "attention_scale": 32**-0.5},
    "phi3": {"family": "phi3", "sliding_window": 64},
    "phi3, longrope": {
        "family": "phi3",
        "rope_scaling": RopeScaling(
            "longrope", 2.0, original_context=32, attention_factor=1.25,
            long_factors=_FACTORS, short_factors=_FACTORS[::-1],
        ),
    },
    "gemma": {"family": "gemma", **_GEMMA},
    "gemma2": {
        "family": "gemma2",
        **_GEMMA,
        "layers": 2,
        "sliding_window": 32,
        "full_attention_every": 2,
        "attention_softcap": 50.0,
        "output_softcap": 25.0,
    },
    "gemma3": {
        "family": "gemma3",
        **_GEMMA,
        "layers": 6,
        "sliding_window": 32,
        "full_attention_every": 6,
        "rope_theta_local": 10000.0,
        "rope_theta": 1e6,
    },
}  # fmt: skip
