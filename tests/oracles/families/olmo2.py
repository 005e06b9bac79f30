"""OLMo 2."""

BASE = {
    "model_type": "olmo2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "plain": BASE,
    "as-many-keys": BASE | {"num_key_value_heads": 4},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 1},
    "one-key": BASE | {"num_key_value_heads": 1, "rope_theta": 5e5},
    "large-epsilon": BASE | {"rms_norm_eps": 1e-3},
}
REFUSED = [
    (BASE | {"tie_word_embeddings": True}, "loads olmo2 files only with an output matrix of their own"),
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of olmo2 files"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
