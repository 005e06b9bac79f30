"""Granite 3."""

BASE = {
    "model_type": "granite",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "embedding_multiplier": 12.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False, "rms_norm_eps": 1e-5},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3},
    "biases": BASE | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "other-multipliers": BASE
    | {
        "embedding_multiplier": 1.0,
        "logits_scaling": 0.3,
        "residual_multiplier": 1.7,
        "attention_multiplier": 0.3,
        "rope_theta": 1e6,
        "num_key_value_heads": 1,
    },
}
REFUSED = [
    (BASE | {"residual_multiplier": 0.0}, "residual is 0.0, it has to be a number above 0"),
]
QUANTIZED = BASE | {"vocab_size": 256, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
