"""Qwen 3 with experts."""

BASE = {
    "model_type": "qwen3_moe",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True},
    "odd-sizes": BASE | {"hidden_size": 40, "moe_intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 3},
    "all-experts": BASE
    | {"num_experts": 4, "num_experts_per_tok": 4, "num_key_value_heads": 4, "num_hidden_layers": 3},
    "another-base": BASE | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 1, "head_dim": 16},
}
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of qwen3moe files"),
    (
        BASE | {"norm_topk_prob": False},
        "norm_topk_prob of the model is False, and llama.cpp computes qwen3moe files as if it were True",
    ),
    (
        BASE | {"mlp_only_layers": [0]},
        "mlp_only_layers is [0]; edgekit knows experts in every layer",
    ),
]
QUANTIZED = BASE | {"hidden_size": 256, "moe_intermediate_size": 256, "num_attention_heads": 8}
