"""Qwen 2 and 2.5."""

BASE = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 1},
    "as-many-keys": BASE | {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
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
    "window": BASE | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
}
#: llama.cpp's qwen2 attends to all tokens.
NOT_IN_GGUF = ("window",)
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
