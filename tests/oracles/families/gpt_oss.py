"""gpt-oss, its experts in floats; MXFP4 is in test_families_mxfp4.py."""

ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
    "original_max_position_embeddings": 4096,
    "rope_theta": 150000.0,
}
BASE = {
    "model_type": "gpt_oss",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "rope_parameters": ROPE,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 3},
    "one-key": BASE | {"num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 3},
    "full-first": BASE | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 5},
    "no-yarn": BASE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "num_experts_per_tok": 1},
}
REFUSED = [
    (BASE | {"tie_word_embeddings": True}, "loads gpt-oss files only with an output matrix of their own"),
    (BASE | {"attention_bias": False}, "llama.cpp loads gpt-oss files only with biases"),
    (BASE | {"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
