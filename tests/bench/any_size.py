"""Models of any size: a 70 billion and a mixture of 235 billion weights, from sparse files to GGUF, IR and MLX.

python tests/bench/bench.py --only any-size [--gigabytes 8]

The directories have the shapes of Llama 3 70B (141 GB in BF16) and Qwen 3 235B-A22B (470 GB), in shards of 5 GB that are
made of holes: they take no space, and read as zeros at the speed of memory. Each is opened as a whole, laid out and
planned for each format, which gives the sizes. As many layers as make up so many gigabytes of source are then
converted, and one layer fewer: memory that grew with the layers would show in the difference.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import whole

GIGABYTES = 8.0
SHARD = 5_000_000_000
#: What the issue allows.
ALLOWED = 2 << 30
TARGETS = {"gguf": ("Q4_K_M", "model.gguf"), "openvino": ("INT4_SYM", "ir"), "mlx": ("4bit", "mlx")}
_PLAN = f"""{whole._PEAK}
import edgekit
from edgekit.pipeline import find_format, find_recipe, make_plan
chosen = find_format(sys.argv[2], Path(sys.argv[4]))
layout = chosen.layout(edgekit.open(sys.argv[1]))
plan = make_plan(find_recipe(sys.argv[3], chosen.name), layout)
Path(sys.argv[5]).write_text(json.dumps([len(plan), chosen.sizes(layout).whole(plan)]))
finish()
"""
_CONVERT = f"""{whole._PEAK}
import edgekit
edgekit.quantize(sys.argv[1], sys.argv[3], to=sys.argv[4], format=sys.argv[2])
finish()
"""


@attrs.frozen
class Shape:
    """A model of one of the two families.

    Attributes:
        name: what it is the shape of.
        config: its configuration.
        layers: how many it has as a whole.
    """

    name: str
    config: dict[str, object]
    layers: int

    def tensors(self, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor."""
        c = {key: value for key, value in self.config.items() if isinstance(value, int)}
        width, head = c["hidden_size"], c["head_dim"]
        queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
        yield "model.embed_tokens.weight", (c["vocab_size"], width)
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            yield f"{prefix}input_layernorm.weight", (width,)
            yield f"{prefix}post_attention_layernorm.weight", (width,)
            for name, shape in (
                ("q", (queries, width)),
                ("k", (keys, width)),
                ("v", (keys, width)),
                ("o", (width, queries)),
            ):
                yield f"{prefix}self_attn.{name}_proj.weight", shape
            experts = c.get("num_experts", 0)
            if experts:
                yield f"{prefix}self_attn.q_norm.weight", (head,)
                yield f"{prefix}self_attn.k_norm.weight", (head,)
                yield f"{prefix}mlp.gate.weight", (experts, width)
            ffn = c["moe_intermediate_size"] if experts else c["intermediate_size"]
            for expert in [f"experts.{number}." for number in range(experts)] or [""]:
                yield f"{prefix}mlp.{expert}gate_proj.weight", (ffn, width)
                yield f"{prefix}mlp.{expert}up_proj.weight", (ffn, width)
                yield f"{prefix}mlp.{expert}down_proj.weight", (width, ffn)
        yield "model.norm.weight", (width,)
        yield "lm_head.weight", (c["vocab_size"], width)

    def nbytes(self, layers: int) -> int:
        """Bytes in BF16."""
        return sum(2 * math.prod(shape) for _, shape in self.tensors(layers))

    def write(self, folder: Path, layers: int) -> Path:
        """Write a directory of sparse shards."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**self.config, "num_hidden_layers": layers}))
        shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
        filled = 0
        for name, shape in self.tensors(layers):
            if filled and filled + 2 * math.prod(shape) > SHARD:
                shards, filled = [*shards, []], 0
            shards[-1].append((name, shape))
            filled += 2 * math.prod(shape)
        files = {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}
        for file, shard in files.items():
            _write_holes(folder / file, shard)
        index = {name: file for file, shard in files.items() for name, _ in shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        return folder


_COMMON = {
    "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "tie_word_embeddings": False, "head_dim": 128, "torch_dtype": "bfloat16", "num_attention_heads": 64,
}  # fmt: skip
SHAPES = (
    Shape(
        "Llama 3 70B",
        {**_COMMON, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192,
         "intermediate_size": 28672, "num_key_value_heads": 8, "vocab_size": 128_256},
        80,
    ),
    Shape(
        "Qwen 3 235B-A22B",
        {**_COMMON, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 4096,
         "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_key_value_heads": 4, "vocab_size": 151_936,
         "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True},
        94,
    ),
)  # fmt: skip


def _write_holes(file: Path, tensors: list[tuple[str, tuple[int, ...]]]) -> None:
    header, offset = {}, 0
    for name, shape in tensors:
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)


def report(gigabytes: float = GIGABYTES, shapes: tuple[Shape, ...] = SHAPES) -> Iterator[str]:
    """The table."""
    yield "| model | to | whole model: planned size; to open, lay out and plan it | converted | processor time | peak memory |"
    yield "|---|---|---|---|---|---|"
    kept = True
    for shape in shapes:
        for line, peak in _rows(shape, gigabytes):
            kept = kept and peak <= ALLOWED
            yield line
    yield ""
    yield f"2 GiB of memory are allowed: {'kept' if kept else '**exceeded**'}."


def _rows(shape: Shape, gigabytes: float) -> Iterator[tuple[str, int]]:
    cores = min(2, len(os.sched_getaffinity(0)))
    layer = shape.nbytes(1) - shape.nbytes(0)
    layers = max(2, round((gigabytes * 1e9 - shape.nbytes(0)) / layer))
    with tempfile.TemporaryDirectory() as name:
        source = shape.write(Path(name) / "whole", shape.layers)
        parts = {count: shape.write(Path(name) / f"part{count}", count) for count in (layers - 1, layers)}
        for format_name, (recipe, target) in TARGETS.items():
            to = Path(name) / target
            planned = whole.run(_PLAN, cores, source, format_name, recipe, to, counts := Path(name) / "counts.json")
            tensors, nbytes = json.loads(counts.read_text())
            runs = []
            for part in parts.values():
                runs.append(whole.run(_CONVERT, cores, part, format_name, recipe, to))
                made = sum(file.stat().st_size for file in (to.iterdir() if to.is_dir() else [to]))
                _remove(to)
            fewer, more = runs
            yield (
                f"| {shape.name}, {shape.nbytes(shape.layers) / 1e9:.0f} GB | {format_name}, {recipe} "
                f"| {nbytes / 1e9:.1f} GB in {tensors:,} tensors; {planned.cpu:.1f} s, {planned.peak / 1e6:.0f} MB "
                f"| {layers - 1} and {layers} layers, {shape.nbytes(layers) / 1e9:.1f} GB to {made / 1e9:.1f} GB "
                f"| {fewer.cpu:.0f} and {more.cpu:.0f} s | {fewer.peak / 1e6:.0f} and {more.peak / 1e6:.0f} MB |",
                max(planned.peak, fewer.peak, more.peak),
            )


def _remove(target: Path) -> None:
    """Remove a written model."""
    if target.is_dir():
        shutil.rmtree(target)
    for file in target.parent.glob(f"{target.name}*"):
        file.unlink()


__all__ = ["SHAPES", "Shape", "report"]
