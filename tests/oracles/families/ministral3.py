"""Ministral 3."""

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
BASE = {
    "model_type": "ministral3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_parameters": ROPE,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "head_dim": 10},
    "not-tempered": BASE | {"rope_parameters": ROPE | {"llama_4_scaling_beta": 0.0}, "num_key_value_heads": 1},
    "another-factor": BASE
    | {
        "rope_parameters": ROPE
        | {"factor": 4.0, "mscale_all_dim": 0.5, "original_max_position_embeddings": 7, "llama_4_scaling_beta": 0.3}
    },
}
REFUSED = [
    (BASE | {"sliding_window": 8}, "llama.cpp computes mistral3 files as if it had none"),
    (
        BASE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1}},
        "edgekit knows yarn for this family",
    ),
]
QUANTIZED = BASE | {"vocab_size": 256, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
