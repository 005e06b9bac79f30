"""Small random embedding models: configurations, and what sentence-transformers puts after them."""

BERT = {
    "model_type": "bert",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GEMMA = {
    "model_type": "gemma3_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "max_position_embeddings": 64,
    "use_bidirectional_attention": True,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "pad_token_id": 0,
}
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
#: Wide enough for every block.
QUANTIZED = {
    "bert": BERT | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 256},
    "embedding_gemma": GEMMA | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 256},
}
#: Name: configuration, how states are pooled, output widths of dense matrices.
CONFIGS = {
    "bert-mean": (BERT, "mean", ()),
    "bert-cls": (BERT | {"num_hidden_layers": 3, "layer_norm_eps": 1e-3}, "cls", ()),
    "bert-odd-sizes": (BERT | {"hidden_size": 40, "intermediate_size": 72, "num_attention_heads": 5}, "mean", ()),
    "bert-one-type": (BERT | {"type_vocab_size": 1, "max_position_embeddings": 40}, "lasttoken", ()),
    "bert-one-head": (BERT | {"num_attention_heads": 1, "vocab_size": 101}, "cls", ()),
    "embedding_gemma-mean": (GEMMA, "mean", ()),
    "embedding_gemma-dense": (GEMMA, "mean", (96, 64)),
    "embedding_gemma-odd-window": (GEMMA | {"sliding_window": 7, "num_key_value_heads": 1}, "mean", ()),
    "embedding_gemma-another-pattern": (
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "hidden_size": 40,
        },
        "lasttoken",
        (),
    ),
    "embedding_gemma-ropes": (
        GEMMA | {"rope_parameters": ROPES, "head_dim": 16, "query_pre_attn_scalar": 16},
        "cls",
        (128, 64),
    ),
    "qwen3-last": (QWEN3, "lasttoken", ()),
    "qwen3-mean": (QWEN3 | {"num_key_value_heads": 1, "hidden_size": 40}, "mean", ()),
}
