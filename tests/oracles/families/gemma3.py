"""Gemma 3, its text models."""

GELU = True
BASE = {
    "model_type": "gemma3_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False, "final_logit_softcapping": 30.0, "num_hidden_layers": 3},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 7,
    },
    "ropes": BASE | {"rope_parameters": ROPES, "num_key_value_heads": 1},
    "every-other": BASE
    | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "rms_norm_eps": 1e-3},
}
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of gemma3 files"),
]
QUANTIZED = BASE | {
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
}
