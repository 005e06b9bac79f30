"""A mixture of experts from a Hugging Face directory to Q4_K_M: memory, and speed beside `llama_model_quantize`.

python tests/bench/bench.py --only experts [--gigabytes 4]

The directory has the shape of Qwen 3 30B-A3B, with experts fused to one tensor a layer, and as many layers (below 1.2 GB:
experts) as the size allows. llama.cpp quantizes the same model from a GGUF file in F16 that is there already: `convert_hf_to_gguf.py`, which
would make it, is in no installed package, so that the time it takes is not in the ratio.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import whole

import edgekit

GIGABYTES = 4.0
ROUNDS = 3
WIDTH, FFN, EXPERTS, USED, HEADS, KV_HEADS, HEAD, VOCAB = 2048, 768, 128, 8, 32, 4, 128, 32_000
#: Bytes of float32 of the largest matrix of an expert: gate and up together.
LARGEST = 4 * 2 * FFN * WIDTH


def report(gigabytes: float = GIGABYTES, rounds: int = ROUNDS) -> Iterator[str]:
    """The table: medians of interleaved rounds, each process bound to its cores."""
    with tempfile.TemporaryDirectory() as folder:
        source, float16, ours, theirs = (
            Path(folder) / name for name in ("model", "f16.gguf", "our.gguf", "their.gguf")
        )
        layers, count = write_model(source, gigabytes)
        size = (source / "model.safetensors").stat().st_size
        edgekit.convert(source, float16, dtype="F16")
        cores = min(2, len(os.sched_getaffinity(0)))
        whole.run(whole._EDGEKIT, cores, source, ours)  # compiles the kernels
        pairs = [
            (
                whole.run(whole._EDGEKIT, cores, source, ours),
                whole.run(whole._LLAMA, cores, float16, theirs, whole=False),
            )
            for _ in range(rounds)
        ]
        own, peer = (whole._median(list(runs)) for runs in zip(*pairs, strict=True))
        same = whole._digest(ours) == whole._digest(theirs)
    allowed = 3 * LARGEST + 200e6
    yield f"A random Qwen 3 MoE of {size / 1e9:.2f} GB (BF16, {layers} layers, {count} fused experts each, a stack of"
    yield f"{4e-6 * count * 2 * FFN * WIDTH:.0f} MB in float32) to {whole.RECIPE} on {cores} cores, medians of {rounds} interleaved rounds:"
    yield ""
    yield "| what | seconds | processor time | peak memory |"
    yield "|---|---|---|---|"
    yield f"| edgekit, from the Hugging Face directory | {whole._spent(own)} |"
    yield f"| `llama_model_quantize`, from a GGUF file in F16 | {whole._spent(peer)} |"
    yield ""
    yield (
        f"edgekit is **{peer.seconds / own.seconds:.1f}×** as fast by the clock; the tensors' bytes are "
        f"{'identical' if same else '**different**'}. Allowed are three times an expert's largest matrix in float32 plus "
        f"200 MB, {allowed / 1e6:.0f} MB: {'kept' if own.peak <= allowed else '**exceeded**'}."
    )


def shapes(layers: int, experts: int = EXPERTS) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}input_layernorm.weight": (WIDTH,),
            f"{prefix}post_attention_layernorm.weight": (WIDTH,),
            f"{prefix}self_attn.q_norm.weight": (HEAD,),
            f"{prefix}self_attn.k_norm.weight": (HEAD,),
            f"{prefix}self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
            f"{prefix}self_attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{prefix}self_attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{prefix}self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
            f"{prefix}mlp.gate.weight": (experts, WIDTH),
            f"{prefix}mlp.experts.gate_up_proj": (experts, 2 * FFN, WIDTH),
            f"{prefix}mlp.experts.down_proj": (experts, WIDTH, FFN),
        }
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}


def write_model(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Write the directory; return the number of its layers, and of experts in each: fewer where one layer is too large."""
    fixed = 2 * sum(int(np.prod(shape)) for shape in shapes(0).values())
    layer = 2 * sum(int(np.prod(shape)) for shape in shapes(1).values()) - fixed
    layers = max(1, round((gigabytes * 1e9 - fixed) / layer))
    experts = min(EXPERTS, max(USED, round(EXPERTS * (gigabytes * 1e9 - fixed) / layer)))
    folder.mkdir()
    config = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": WIDTH,
        "intermediate_size": 6144, "moe_intermediate_size": FFN, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "num_experts": experts,
        "num_experts_per_tok": USED, "norm_topk_prob": True, "vocab_size": VOCAB, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _write_bfloat16(folder / "model.safetensors", shapes(layers, experts))
    return layers, experts


def _write_bfloat16(file: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Random values that float16 has too: those below its normal range are 0, so that both files hold the same."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).standard_normal(1 << 24, np.float32) / np.float32(np.sqrt(WIDTH))
    values[np.abs(values) < 2.0**-14] = 0
    bits = (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(tensors.values()):
            left = int(np.prod(shape))
            turned = np.roll(bits, 7919 * number)
            while left:
                stream.write(turned[:left].tobytes())
                left -= min(left, turned.size)


__all__ = ["report", "write_model"]
