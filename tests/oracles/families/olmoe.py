"""OLMoE."""

BASE = {
    "model_type": "olmoe",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "plain": BASE,
    "large-epsilon": BASE | {"rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 3},
    "all-experts": BASE | {"num_experts": 4, "num_experts_per_tok": 4, "num_hidden_layers": 3},
    "another-base": BASE
    | {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "num_attention_heads": 2, "num_key_value_heads": 2},
}
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of olmoe files"),
    (
        BASE | {"norm_topk_prob": True},
        "norm_topk_prob of the model is True, and llama.cpp computes olmoe files as if it were False",
    ),
    (BASE | {"tie_word_embeddings": True}, "loads olmoe files only with an output matrix of their own"),
    (BASE | {"num_key_value_heads": 2}, "num_key_value_heads"),
    (BASE | {"clip_qkv": 8.0}, "clip_qkv"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 256, "num_experts": 4}
