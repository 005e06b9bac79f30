"""Gemma 4: with embeddings for each layer (E2B), dense with keys as values, with experts."""

GELU = True
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
BASE = {
    "model_type": "gemma4_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 8,
    "final_logit_softcapping": 30.0,
    "layer_types": KINDS * 2,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 96,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DENSE = BASE | {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "num_key_value_heads": 2,
}
EXPERTS = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 48}
ROPES = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
CONFIGS = {
    "per-layer": BASE,
    "keys-as-values": DENSE | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "experts": DENSE | EXPERTS,
    "ropes": DENSE | {"rope_parameters": ROPES, "final_logit_softcapping": 10.0, "tie_word_embeddings": False},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "intermediate_size": 72,
        "head_dim": 16,
        "global_head_dim": 24,
        "hidden_size_per_layer_input": 24,
        "use_double_wide_mlp": False,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": KINDS[1:] * 2,
    },
    "experts-and-keys-as-values": DENSE
    | EXPERTS
    | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_experts": 4, "top_k_experts": 3},
}
REFUSED = [
    (
        DENSE | {"final_logit_softcapping": None},
        "output_softcap of the model is None, but GGUF files of gemma4 models mean 30.0, and have no key to say otherwise",
    ),
    (BASE | {"attention_bias": True}, "attention_bias is True; edgekit knows false for Gemma 4"),
    (
        BASE | {"num_kv_shared_layers": 2, "use_double_wide_mlp": False},
        "layer 4 of the model shares the keys and values of layer 3, and llama.cpp computes gemma4 files with those of "
        "layer 2; choose another format",
    ),
]
QUANTIZED = BASE | {
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 64,
}
