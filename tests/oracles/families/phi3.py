"""Phi 3, 3.5 and 4, dense."""

BASE = {
    "model_type": "phi3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": None,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "pad_token_id": 0,
}
#: What Phi 4 mini has: three quarters of each head rotate, tied embeddings, longrope. llama.cpp chooses its factors by
#: the size of the context, of which it takes 256 tokens at least.
PHI4_MINI = BASE | {
    "tie_word_embeddings": True,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "long_factor": [1.0 + i / 2 for i in range(6)],
        "short_factor": [1.0 + i / 10 for i in range(6)],
        "original_max_position_embeddings": 256,
    },
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_key_value_heads": 1},
    "window": BASE | {"sliding_window": 8},
    "phi-4": BASE
    | {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_theta": 250_000.0,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 90,
        "eos_token_id": 91,
    },
    "phi-4-mini": PHI4_MINI,
}
#: llama.cpp's phi3 attends to all tokens.
NOT_IN_GGUF = ("window",)
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
