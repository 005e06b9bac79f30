"""Qwen 3 Next."""

BASE = {
    "model_type": "qwen3_next",
    "vocab_size": 96,
    "hidden_size": 64,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True},
    "odd-sizes": BASE
    | {
        "hidden_size": 48,
        "moe_intermediate_size": 24,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "num_experts": 5,
    },
    "as-many-values": BASE
    | {"linear_num_value_heads": 2, "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]},
    "three-used": BASE | {"num_key_value_heads": 1, "linear_num_value_heads": 6, "num_experts_per_tok": 3},
}
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of qwen3next files"),
    (BASE | {"linear_value_head_dim": 16}, "and llama.cpp knows one size for both"),
    (
        BASE | {"norm_topk_prob": False},
        "norm_topk_prob of the model is False, and llama.cpp computes qwen3next files as if it were True",
    ),
]
QUANTIZED = BASE | {
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "num_experts": 4,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}
