"""Gemma, the first."""

GELU = True
BASE = {
    "model_type": "gemma",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "as-many-keys": BASE | {"num_key_value_heads": 4, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "head_dim": 12},
    "another-base": BASE | {"rope_theta": 1e6, "num_key_value_heads": 2},
    "untied": BASE | {"tie_word_embeddings": False},
}
#: llama.cpp's gemma has no output matrix of its own.
NOT_IN_GGUF = ("untied",)
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of gemma files"),
    (CONFIGS["untied"], "gemma"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512}
