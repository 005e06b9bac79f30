"""Nemotron-H with experts."""

BASE = {
    "model_type": "nemotron_h",
    "vocab_size": 96,
    "hidden_size": 64,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 72,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "latent": BASE | {"moe_latent_size": 32},
    "never-tied": BASE | {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-3, "routed_scaling_factor": 1.0},
    "odd-sizes": BASE
    | {"hidden_size": 40, "moe_intermediate_size": 24, "n_routed_experts": 5, "num_experts_per_tok": 3},
    "not-normalized": BASE
    | {"norm_topk_prob": False, "layers_block_type": ["moe", "full_attention", "linear_attention"], "n_groups": 1},
}
REFUSED = [
    (BASE | {"n_group": 2, "topk_group": 1}, "n_group of the model is 2, and edgekit has compared llama.cpp's"),
    (BASE | {"mlp_bias": True}, "mlp_bias is True; edgekit knows false for models with experts"),
]
QUANTIZED = BASE | {
    "vocab_size": 256,
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "moe_shared_expert_intermediate_size": 512,
    "mamba_head_dim": 64,
    "head_dim": 64,
}
