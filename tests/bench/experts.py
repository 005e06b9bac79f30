"""A mixture of experts from a Hugging Face directory to Q4_K_M: memory, and speed beside llama.cpp's two programs.

python tests/bench/bench.py --only experts [--gigabytes 4]

The directory has the shape of Qwen 3 30B-A3B, with experts fused to one tensor a layer, and as many layers (below 1.2 GB:
experts) as the size allows. llama.cpp takes two steps: `convert_hf_to_gguf.py` to a GGUF file in F16, then
`llama_model_quantize`. The script is in no installed package, but in the source distribution of llama-cpp-python:
`nox -s bench -- --only experts` downloads that and names it in EDGEKIT_LLAMA_SOURCES. Without it edgekit writes the file in
F16, and the second step alone is compared. It takes 2.3 times the size on the disk.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import whole

import edgekit

GIGABYTES = 4.0
ROUNDS = 3
#: From this size one round is enough: it takes minutes, beside which what disturbs it is short.
LARGE = 3.0
WIDTH, FFN, EXPERTS, USED, HEADS, KV_HEADS, HEAD, VOCAB = 2048, 768, 128, 8, 32, 4, 128, 32_000
#: Bytes of float32 of the largest matrix of an expert: gate and up together.
LARGEST = 4 * 2 * FFN * WIDTH
#: How many times as fast as both steps of llama.cpp edgekit has to be.
FASTER = 3
#: The script, and what it imports of its own, in the source distribution.
_SCRIPT = "vendor/llama.cpp/convert_hf_to_gguf.py"
_NEEDED = (_SCRIPT, "vendor/llama.cpp/conversion/", "vendor/llama.cpp/gguf-py/")
#: A tokenizer that was never published has no entry in the script's table of their digests; its kind is told instead.
_CONVERT = f"""{whole._PEAK}
import runpy
os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))  # torch's threads
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = [sys.argv[1], sys.argv[2], "--outtype", "f16", "--outfile", sys.argv[3]]
runpy.run_path(sys.argv[0], run_name="__main__")
finish()
"""


def report(gigabytes: float = GIGABYTES, rounds: int | None = None) -> Iterator[str]:
    """The table: medians of interleaved rounds, each process bound to its cores."""
    rounds = rounds or (1 if gigabytes >= LARGE else ROUNDS)
    cores = min(2, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, float16, ours, theirs = (folder / each for each in ("model", "f16.gguf", "our.gguf", "their.gguf"))
        layers, count = write_model(source, gigabytes)
        size = (source / "model.safetensors").stat().st_size
        script = converter(folder)
        if script is None:
            edgekit.convert(source, float16, dtype="F16")
        for precision in ("ggml:Q4_K", "ggml:Q6_K"):  # compiles the kernels
            edgekit.encode(np.ones((1, 256), np.float32), precision)
        runs: dict[str, list[whole.Run]] = {"edgekit": [], "convert": [], "quantize": []}
        for _ in range(rounds):
            runs["edgekit"].append(whole.run(whole._EDGEKIT, cores, source, ours))
            made = whole._digest(ours)
            ours.unlink()
            if script is not None:
                runs["convert"].append(whole.run(_CONVERT, cores, script, source, float16))
            runs["quantize"].append(whole.run(whole._LLAMA, cores, float16, theirs, whole=False))
        same = made == whole._digest(theirs)
    yield f"A random Qwen 3 MoE of {size / 1e9:.2f} GB (BF16, {layers} layers, {count} fused experts each, a stack of"
    yield f"{4e-6 * count * 2 * FFN * WIDTH:.0f} MB in float32) to {whole.RECIPE} on {cores} cores, {'one round' if rounds == 1 else f'medians of {rounds} interleaved rounds'}:"
    yield ""
    yield from _table({name: whole._median(each) for name, each in runs.items() if each}, same)


def _table(found: dict[str, whole.Run], same: bool) -> Iterator[str]:
    own, allowed = found["edgekit"], 3 * LARGEST + 200e6
    yield "| what | seconds | processor time | peak memory |"
    yield "|---|---|---|---|"
    yield f"| edgekit, from the Hugging Face directory | {whole._spent(own)} |"
    if "convert" in found:
        yield f"| `convert_hf_to_gguf.py --outtype f16` | {whole._spent(found['convert'])} |"
    yield f"| `llama_model_quantize`, from the GGUF file in F16 | {whole._spent(found['quantize'])} |"
    yield ""
    steps = [found[name] for name in ("convert", "quantize") if name in found]
    clock, cpu = (sum(getattr(run, field) for run in steps) / getattr(own, field) for field in ("seconds", "cpu"))
    wanted = f"; {FASTER}× is asked: {'kept' if min(clock, cpu) >= FASTER else '**missed**'}" if len(steps) == 2 else ""
    yield (
        f"edgekit is **{clock:.1f}×** as fast as {'both steps' if len(steps) == 2 else 'that step'} by the clock, "
        f"**{cpu:.1f}×** by processor time{wanted}. The tensors' bytes are {'identical' if same else '**different**'}. "
        f"Allowed are three times an expert's largest matrix in float32 plus 200 MB, {allowed / 1e6:.0f} MB: "
        f"{'kept' if own.peak <= allowed else '**exceeded**'}."
    )


def converter(folder: Path) -> Path | None:
    """llama.cpp's script, unpacked to the folder with its modules; None without the source distribution."""
    sources = os.environ.get("EDGEKIT_LLAMA_SOURCES")
    if sources is None:
        return None
    with tarfile.open(sources) as archive:
        root = archive.getmembers()[0].name.split("/")[0]
        needed = tuple(f"{root}/{name}" for name in _NEEDED)
        archive.extractall(folder, [each for each in archive if each.name.startswith(needed)], filter="data")
    return folder / root / _SCRIPT


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
    _write_tokenizer(folder / "tokenizer.json")
    return layers, experts


def _write_tokenizer(file: Path) -> None:
    """The 256 bytes; llama.cpp's script adds unused tokens up to the vocabulary's size, as edgekit does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(file))


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


__all__ = ["converter", "report", "write_model"]
