"""LFM2."""

BASE = {
    "model_type": "lfm2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "block_auto_adjust_ff_dim": False,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "untied": BASE | {"tie_word_embeddings": False, "norm_eps": 1e-3},
    "odd-sizes": BASE
    | {"hidden_size": 40, "num_hidden_layers": 3, "layer_types": ["full_attention", "conv", "full_attention"]},
    "adjusted": BASE | {"block_auto_adjust_ff_dim": True, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.3},
    "four-taps": BASE | {"conv_L_cache": 4, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
}
REFUSED = [
    (BASE | {"conv_bias": True}, "llama.cpp loads no biases of lfm2 files"),
    (BASE | {"conv_L_cache": 1}, "the model has a convolution of one tap"),
    (BASE | {"layer_types": ["conv"] * 4}, "the model has no layer with attention"),
    (BASE | {"layer_types": ["conv", "conv", "sliding_attention", "conv"]}, "edgekit knows full_attention and conv"),
]
#: Layer 0 has no keys: llama.cpp then sees no sharing of them, whatever the other layers have.
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
