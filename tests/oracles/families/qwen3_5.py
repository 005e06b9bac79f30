"""Qwen 3.5, dense."""

ROPE = {
    "rope_type": "default",
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}
BASE = {
    "model_type": "qwen3_5_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": ROPE,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True},
    "odd-sizes": BASE
    | {"hidden_size": 48, "intermediate_size": 72, "linear_num_key_heads": 3, "linear_num_value_heads": 6},
    "as-many-values": BASE
    | {"linear_num_value_heads": 2, "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]},
    "half-rotates": BASE
    | {
        "num_key_value_heads": 1,
        "linear_num_value_heads": 6,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]},
    },
}
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of qwen35 files"),
    (
        BASE | {"linear_value_head_dim": 16},
        "have 32 elements and the value heads 16, and llama.cpp knows one size for both",
    ),
]
QUANTIZED = BASE | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}
