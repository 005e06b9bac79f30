"""Phi-3.5 MoE."""

GGUF = False
BASE = {
    "model_type": "phimoe",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "long_factor": [1.0 + i / 2 for i in range(8)],
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_mscale": 1.25,
    "short_mscale": 1.25,
    "original_max_position_embeddings": 64,
    "factor": 4.0,
}
CONFIGS = {
    "plain": BASE | {"lm_head_bias": True, "attention_bias": True},
    "near": BASE | {"router_jitter_noise": 0.5, "num_local_experts": 4},
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3, "num_key_value_heads": 4},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 24, "num_local_experts": 5, "num_hidden_layers": 3},
    "longrope": BASE | {"rope_parameters": LONG, "max_position_embeddings": 256, "sliding_window": 9},
}
REFUSED = [
    (BASE, "llama.cpp computes phimoe files with RMSNorm and a softmax over all experts"),
    (BASE | {"rope_parameters": LONG | {"long_mscale": 1.5}}, "short_mscale and long_mscale is (1.25, 1.5)"),
]
