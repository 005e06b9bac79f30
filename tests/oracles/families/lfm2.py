"""LFM2."""

BASE = {
    "model_type": "lfm2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "conv_L_cache": 3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72},
    "attention-first": BASE
    | {"layer_types": ["full_attention", "conv", "full_attention", "conv"], "num_key_value_heads": 1},
    "four-taps": BASE
    | {
        "conv_L_cache": 4,
        "norm_eps": 1e-3,
        "rope_theta": 1e4,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 32,
    },
}
REFUSED = [
    (BASE | {"conv_bias": True}, "llama.cpp loads no biases of lfm2 files' convolutions"),
]
