"""``genai_config.json``: the configuration of a decoder for ONNX Runtime GenAI.

Source: onnxruntime-genai 0.18, ``src/config.cpp``, and what its model builder writes.
"""

from __future__ import annotations

import json
from typing import Any

from edgekit.architectures import FAMILIES
from edgekit.architectures.blocks import calls
from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError
from edgekit_olive.ops import causal

CONFIG = "genai_config.json"


def runs(layout: Layout) -> bool:
    """Return whether GenAI can run a layout's model: a decoder without states other than keys and values."""
    assert layout.model is not None
    config = layout.model.config
    network = FAMILIES[config.family].network(config)
    uses = calls(network)
    remembered = {call.operation for call in uses} & {"convolve", "delta_rule", "scan"}
    return network.predicts and not remembered and all(map(causal, uses))


def config_of(layout: Layout) -> bytes:
    """Return the bytes of genai_config.json for a layout's model."""
    assert layout.model is not None
    config = layout.model.config
    try:
        tokenizer = layout.source.tokenizer
    except UnsupportedModelError:  # copied byte for byte nevertheless
        tokenizer = None
    ends = sorted(tokenizer.end_ids) if tokenizer else []
    model: dict[str, Any] = {
        "bos_token_id": _or_zero(tokenizer.bos if tokenizer else None),
        "context_length": config.context,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "head_size": config.head_dim,
            "hidden_size": config.width,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "position_ids": "position_ids",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "num_attention_heads": config.heads,
            "num_hidden_layers": config.layers,
            "num_key_value_heads": config.kv_heads,
        },
        "eos_token_id": ends if len(ends) > 1 else _or_zero(ends[0] if ends else None),
        "pad_token_id": _or_zero((tokenizer.pad if tokenizer else None) or (ends[0] if ends else None)),
        "type": "llama",  # GenAI's name for a decoder with these inputs, whatever the family
        "vocab_size": config.vocab,
    }
    search = {
        "do_sample": False,
        "early_stopping": True,
        "max_length": config.context,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
    return json.dumps({"model": model, "search": search}, indent=2).encode() + b"\n"


def _or_zero(number: int | None) -> int:
    return 0 if number is None else number


__all__ = ["CONFIG", "config_of", "runs"]
