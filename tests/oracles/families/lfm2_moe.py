"""LFM2 with experts."""

BASE = {
    "model_type": "lfm2_moe",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_dense_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "conv_L_cache": 3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_experts": 5, "num_experts_per_tok": 3},
    "attention-first": BASE
    | {"layer_types": ["full_attention", "conv", "full_attention", "conv"], "num_key_value_heads": 1},
    "four-taps": BASE | {"conv_L_cache": 4, "norm_eps": 1e-3, "rope_theta": 1e4, "num_dense_layers": 2},
}
REFUSED = [
    (BASE | {"conv_bias": True}, "llama.cpp loads no biases of lfm2moe files"),
    (BASE | {"norm_topk_prob": False}, "llama.cpp computes lfm2moe files as if it were True"),
    (BASE | {"routed_scaling_factor": 2.5}, "routed_scaling_factor of the model is 2.5"),
    (BASE | {"use_expert_bias": False}, "use_expert_bias of the model is false"),
]
QUANTIZED = BASE | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_attention_heads": 8,
}
