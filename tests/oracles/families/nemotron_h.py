"""Nemotron-H with dense networks."""

BASE = {
    "model_type": "nemotron_h",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "never-tied": BASE | {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-3, "num_key_value_heads": 1},
    "biases": BASE | {"attention_bias": True, "mlp_bias": True},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "mamba_num_heads": 6, "ssm_state_size": 8},
    "another-pattern": BASE
    | {
        "layers_block_type": ["mlp", "linear_attention", "full_attention", "linear_attention", "mlp"],
        "conv_kernel": 3,
        "n_groups": 1,
    },
}
REFUSED = [
    (
        BASE | {"use_conv_bias": False},
        "use_conv_bias of the model is false, and llama.cpp computes nemotron_h files with",
    ),
    (
        BASE | {"use_bias": True},
        "use_bias of the model is true, and llama.cpp computes nemotron_h files with a bias of",
    ),
    (
        BASE | {"layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"]},
        "edgekit knows mlp or moe, not both in one model",
    ),
]
QUANTIZED = BASE | {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "mamba_head_dim": 64,
    "head_dim": 64,
}
