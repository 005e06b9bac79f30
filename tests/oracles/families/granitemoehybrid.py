"""Granite 4."""

BASE = {
    "model_type": "granitemoehybrid",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "shared_intermediate_size": 56,
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
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
    "dense": BASE | {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96},
    "rotating": BASE | {"position_embedding_type": "rope", "tie_word_embeddings": False, "rope_theta": 1e6},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "layer_types": ["attention", "mamba", "attention"],
    },
    "biases": BASE
    | {
        "attention_bias": True,
        "mamba_d_conv": 3,
        "residual_multiplier": 1.5,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
REFUSED = [
    (BASE | {"mamba_proj_bias": True}, "mamba_proj_bias of the model is true"),
    (BASE | {"mamba_conv_bias": False}, "mamba_conv_bias of the model is false"),
    (BASE | {"mamba_expand": 1}, "llama.cpp loads granitehybrid files only with twice the model's width, 128"),
    (BASE | {"layer_types": None}, "no layer of the model has attention"),
    (BASE | {"time_step_limit": (0.001, 0.1)}, "edgekit knows null, or from 0 to infinity"),
]
QUANTIZED = BASE | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "shared_intermediate_size": 512,
    "num_attention_heads": 8,
}
