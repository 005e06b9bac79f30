"""Mixtral."""

BASE = {
    "model_type": "mixtral",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 3},
    "wide-heads": BASE | {"head_dim": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    "one-used": BASE | {"num_experts_per_tok": 1, "rope_theta": 1e4, "num_hidden_layers": 3},
}
REFUSED = [
    (BASE | {"sliding_window": 8}, "sliding_window"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
