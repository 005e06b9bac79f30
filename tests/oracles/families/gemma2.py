"""Gemma 2."""

GELU = True
BASE = {
    "model_type": "gemma2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "one-key": BASE | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE
    | {
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 7,
    },
    "other-caps": BASE | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0, "rope_theta": 1e3},
    "scaled-otherwise": BASE | {"query_pre_attn_scalar": 16},
    "untied": BASE | {"tie_word_embeddings": False},
}
#: llama.cpp's gemma2 has no output matrix of its own, and takes the scores' scale from the size of heads.
NOT_IN_GGUF = ("untied", "scaled-otherwise")
REFUSED = [
    (BASE | {"attention_bias": True}, "llama.cpp loads no biases of gemma2 files"),
    (CONFIGS["untied"], "gemma2"),
    (CONFIGS["scaled-otherwise"], "gemma2"),
]
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "query_pre_attn_scalar": 64}
