"""Granite 4 without Mamba and experts: 350M, 1B, Micro."""

BASE = {
    "model_type": "granitemoehybrid",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "shared_intermediate_size": 96,
    "num_hidden_layers": 2,
    "layer_types": ["attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "mamba_n_heads": 8,
    "position_embedding_type": "rope",
    "embedding_multiplier": 12.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False, "rope_theta": 1e6, "rms_norm_eps": 1e-3},
    "no-positions": BASE | {"position_embedding_type": None},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "shared_intermediate_size": 72,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
    },
    "biases": BASE | {"attention_bias": True, "num_key_value_heads": 1, "position_embedding_type": "nope"},
}
#: A file whose layers rotate is Granite 3's.
GGUF_READS_AS = "granite"
QUANTIZED = BASE | {"vocab_size": 256, "hidden_size": 256, "shared_intermediate_size": 512, "num_attention_heads": 8}
