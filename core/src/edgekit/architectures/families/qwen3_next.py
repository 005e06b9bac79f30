"""Qwen 3 Next: the first hybrid of gated delta nets, with experts.

Hugging Face has queries, keys, values and gate of a gated delta net in one matrix, one key head after the other. The
canonical tensors are GGUF's: ``attn_qkv`` (queries of all heads, then keys, then values) and ``attn_gate``. Value heads
stay grouped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Section
from edgekit.architectures.decoder import COMMON
from edgekit.architectures.families.qwen3_5 import DELTA, SSM_KEYS, DeltaSizes
from edgekit.architectures.families.qwen3_5_moe import EXPERT_NAMES, SHARED, DeltaMixture
from edgekit.architectures.links import Link, Tensors, rows_of
from edgekit.architectures.mixture import EXPERT_FFN, KEYS


class Qwen3Next(DeltaMixture):
    """Qwen 3 Next."""

    name = "qwen3_next"
    model_types = ("qwen3_next",)
    hf_class = "Qwen3NextForCausalLM"
    apart = "the first of these hybrids: its gated delta nets have one matrix for queries, keys, values and gate"
    defaults = (
        COMMON
        | DELTA
        | {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "max_position_embeddings": 32_768,
            "partial_rotary_factor": 0.25,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 10,
            "num_experts": 512,
            "num_local_experts": None,
            "norm_topk_prob": True,
        }
    )
    gguf = Gguf("qwen3next", biases=False, keys=(*SSM_KEYS, *KEYS, EXPERT_FFN, SHARED))
    layer_names = EXPERT_NAMES | {"ssm_ba": "linear_attn.in_proj_ba"}
    normalized_key = "norm_topk_prob"
    tiled = False

    def refuse(self, c: Section) -> None:
        """Layers without experts."""
        super().refuse(c)
        if c.values["mlp_only_layers"]:
            c.refuse("mlp_only_layers", c.values["mlp_only_layers"], "experts in every layer")
        if c.integer("decoder_sparse_step") != 1:
            c.refuse("decoder_sparse_step", c.values["decoder_sparse_step"], "1: experts in every layer")

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """With queries, keys, values and gate in one matrix."""
        found: list[Link] = []
        for link in super().links(config, names):
            role = link.canonical[0].split(".", 2)[-1]
            if role == "attn_qkv.weight":
                found.append(_together(link.canonical[0], self.delta(config)))
            elif role != "attn_gate.weight":
                found.append(link)
        return found


def _together(qkv: str, delta: DeltaSizes) -> Link:
    """One matrix in Hugging Face's order, head by head; two in GGUF's."""
    shared = delta.value_heads // delta.key_heads * delta.value_dim
    parts = (delta.key_dim, delta.key_dim, shared, shared)
    starts = (0, *accumulate(parts))
    heads, height = range(delta.key_heads), sum(parts)
    keys = delta.key_heads * delta.key_dim
    # Where the rows of each part begin in the canonical tensors.
    begins = (0, keys, 2 * keys, 0)

    def read(tensors: Tensors) -> Tensors:
        (whole,) = tensors
        rows = [[(whole, head * height + a, head * height + b) for head in heads] for a, b in pairwise(starts)]
        first = [piece for part in rows[:3] for piece in part]
        cols = whole.shape[1:]
        return (
            rows_of(whole.name, (2 * keys + delta.value_heads * delta.value_dim, *cols), first),
            rows_of(whole.name, (delta.value_heads * delta.value_dim, *cols), rows[3]),
        )

    def write(tensors: Tensors) -> Tensors:
        mixed, gate = tensors
        sources = (mixed, mixed, mixed, gate)
        pieces = [
            (source, begin + head * size, begin + (head + 1) * size)
            for head in heads
            for source, begin, size in zip(sources, begins, parts, strict=True)
        ]
        return (rows_of(hf, (delta.key_heads * height, *mixed.shape[1:]), pieces),)

    gate = qkv.replace("attn_qkv", "attn_gate")
    prefix = f"model.layers.{qkv.split('.')[1]}.linear_attn.in_proj"
    hf = f"{prefix}_qkvz.weight"
    return Link((qkv, gate), (hf,), read, write, (qkv,), (f"{prefix}_qkv.weight", f"{prefix}_z.weight"))


__all__ = ["Qwen3Next"]
