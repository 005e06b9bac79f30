"""Llama 2 and 3."""

BASE = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "head_dim": 12},
    "biases": BASE | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama3": BASE | {"rope_parameters": LLAMA3, "num_key_value_heads": 1},
}
REFUSED = [
    (
        BASE | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}},
        "dynamic",
    ),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
