"""Checkpoints of large models as sparse files: their headers, and holes where the weights would be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
#: The sizes of Qwen3-235B-A22B: 22 billion weights a token.
QWEN3_235B = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
}
_SHARD = 40 << 30


def write(folder: Path, config: dict[str, object]) -> Path:
    """Write a checkpoint in BF16; its files take a few megabytes of the disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors(config):
        size += 2 * math.prod(shape)
        if size > _SHARD:
            shards.append({})
            size = 2 * math.prod(shape)
        shards[-1][name] = shape
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_sparse(folder / file, shard)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        if "lm_head.weight" in header:  # differs from the embedding, as in every model: else all of both is compared
            file.seek(8 + len(text) + header["lm_head.weight"]["data_offsets"][0])
            file.write(b"\x80\x3f")


def tensors(config: dict[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face's names and shapes of a checkpoint's tensors."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", width // heads)
    experts = config.get("num_experts", 0)
    yield "model.embed_tokens.weight", (vocab, width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
        for name, rows in (("q", heads), ("k", keys), ("v", keys)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows * head, width)
        yield f"{at}.self_attn.o_proj.weight", (width, heads * head)
        if experts:
            yield f"{at}.self_attn.q_norm.weight", (head,)
            yield f"{at}.self_attn.k_norm.weight", (head,)
            yield f"{at}.mlp.gate.weight", (experts, width)
        for part in [f"mlp.experts.{number}" for number in range(experts)] or ["mlp"]:
            ffn = config["moe_intermediate_size" if experts else "intermediate_size"]
            yield f"{at}.{part}.gate_proj.weight", (ffn, width)
            yield f"{at}.{part}.up_proj.weight", (ffn, width)
            yield f"{at}.{part}.down_proj.weight", (width, ffn)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocab, width)
