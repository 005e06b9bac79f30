"""Qwen 3, dense."""

BASE = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 1, "head_dim": 12},
    "biases": BASE | {"attention_bias": True, "num_key_value_heads": 4, "head_dim": 16},
    "yarn": BASE
    | {
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "window": BASE
    | {
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
#: llama.cpp's qwen3 has no biases, and attends to all tokens.
NOT_IN_GGUF = ("biases", "window")
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of qwen3 files"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
