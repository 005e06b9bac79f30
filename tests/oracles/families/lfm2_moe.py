"""LFM2 with experts."""

BASE = {
    "model_type": "lfm2_moe",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "num_dense_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "two-dense": BASE | {"num_dense_layers": 2, "norm_eps": 1e-3, "num_key_value_heads": 1},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "moe_intermediate_size": 24,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "conv", "full_attention"],
    },
    "none-dense": BASE | {"num_dense_layers": 0, "conv_L_cache": 4},
    "all-experts": BASE
    | {"num_experts": 4, "num_experts_per_tok": 4, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
}
REFUSED = [
    (
        BASE | {"norm_topk_prob": False},
        "norm_topk_prob of the model is False, and llama.cpp computes lfm2moe files as if it were True",
    ),
    (BASE | {"routed_scaling_factor": 2.5}, "llama.cpp computes lfm2moe files as if it were 1"),
    (BASE | {"use_expert_bias": False}, "llama.cpp loads lfm2moe files only with that bias"),
    (BASE | {"conv_bias": True}, "llama.cpp loads no biases of lfm2moe files"),
]
QUANTIZED = BASE | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_attention_heads": 8,
}
