"""Granite 4 with experts and without Mamba."""

BASE = {
    "model_type": "granitemoehybrid",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "shared_intermediate_size": 56,
    "num_hidden_layers": 2,
    "layer_types": ["attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "mamba_n_heads": 8,
    "position_embedding_type": "rope",
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
    "untied": BASE | {"tie_word_embeddings": False, "rope_theta": 1e6, "rms_norm_eps": 1e-3},
    "no-positions": BASE | {"position_embedding_type": None},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "intermediate_size": 24,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
    },
    "biases": BASE | {"attention_bias": True, "num_key_value_heads": 1, "num_experts_per_tok": 1},
}
#: llama.cpp rotates queries and keys of every granitemoe file.
NOT_IN_GGUF = ("no-positions",)
REFUSED = [
    (BASE | {"position_embedding_type": "nope"}, "llama.cpp rotates queries and keys of granitemoe files"),
]
QUANTIZED = BASE | {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 256,
    "shared_intermediate_size": 512,
    "num_attention_heads": 8,
}
