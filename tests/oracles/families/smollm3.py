"""SmolLM3."""

BASE = {
    "model_type": "smollm3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 5},
    "listed": BASE | {"no_rope_layers": [1, 1, 1, 0], "num_key_value_heads": 1},
    "two-of-eight": BASE | {"num_hidden_layers": 8, "rope_theta": 5e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 4},
}
REFUSED = [
    (BASE | {"no_rope_layers": [1, 0, 1, 0]}, "the layers of the model without rotary embeddings (no_rope_layers)"),
    (
        BASE | {"no_rope_layer_interval": 2},
        "are not every fourth, and llama.cpp computes smollm3 files as if they were",
    ),
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of smollm3 files"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
