"""Llama 4, its text models."""

#: llama.cpp computes chunks of 8192 positions alone.
NOT_IN_GGUF = ("chunks", "tempered")
BASE = {
    "model_type": "llama4_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "plain": BASE,
    "chunks": BASE | {"attention_chunk_size": 8},
    "tempered": BASE | {"floor_scale": 4, "attn_scale": 0.5, "use_qk_norm": False},
    "all-experts": BASE | {"interleave_moe_layer_step": 1, "num_experts_per_tok": 2, "tie_word_embeddings": True},
    "odd-sizes": BASE
    | {"hidden_size": 40, "intermediate_size": 24, "head_dim": 10, "num_local_experts": 5, "num_hidden_layers": 5},
    "llama3": BASE | {"rope_parameters": LLAMA3, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
}
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of llama4 files"),
    (
        BASE | {"attention_chunk_size": 8},
        "attention_chunk_size of the model is 8, and llama.cpp computes llama4 files as if it were 8192; choose another",
    ),
    (
        BASE | {"use_qk_norm": False},
        "use_qk_norm of the model is False, and llama.cpp computes llama4 files as if it were",
    ),
    (
        BASE | {"moe_layers": [0]},
        "moe_layers of the model is [0], and llama.cpp knows experts in every n-th layer alone",
    ),
]
QUANTIZED = BASE | {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 256,
    "intermediate_size_mlp": 512,
    "head_dim": 64,
}
