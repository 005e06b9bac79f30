"""Mistral 7B."""

BASE = {
    "model_type": "mistral",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": None,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": BASE,
    "tied": BASE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "odd-sizes": BASE | {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_key_value_heads": 4},
    "wide-heads": BASE | {"head_dim": 32, "num_key_value_heads": 1, "rope_theta": 1e6},
    "window": BASE | {"sliding_window": 8},
    "odd-window": BASE | {"sliding_window": 7, "head_dim": 12},
}
#: Without a window and experts a file of llama.cpp's llama is Llama's.
GGUF_READS_AS = "llama"
#: llama.cpp's llama attends to all tokens.
NOT_IN_GGUF = ("window", "odd-window")
QUANTIZED = BASE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
