"""Peak memory of quantizing a large model: what the streaming promise is measured by."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Run in a process of its own, so that the peak is this job's alone. Linux's VmHWM begins anew with the program;
# ru_maxrss begins with what the parent had when it forked.
_CHILD = """
import json, re, resource, sys
from pathlib import Path
import edgekit
edgekit.quantize(sys.argv[1], sys.argv[2], to=sys.argv[3])
status = Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak}))
"""


def streaming_report(nbytes: int, recipe: str = "Q8_0") -> str:
    """Write a random Llama of about `nbytes` (F32), quantize it, and say what that took."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        largest = write_random_llama(source, nbytes)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(source), recipe, str(Path(folder) / "out.gguf")],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
        peak = json.loads(done.stdout)["peak"]
        size = sum(file.stat().st_size for file in source.iterdir())
    allowed = 3 * largest + 200e6
    return (
        f"Quantizing a random model of {size / 1e9:.2f} GB (F32; largest tensor {largest / 1e6:.0f} MB) to {recipe}: "
        f"{seconds:.1f} s, peak memory {peak / 1e6:.0f} MB; allowed are three times the largest tensor plus 200 MB, "
        f"{allowed / 1e6:.0f} MB: {'kept' if peak <= allowed else '**exceeded**'}."
    )


_ENCODE = """
import json, re, sys
from pathlib import Path
import numpy as np
import edgekit

def kilobytes(field):
    return int(re.search(field + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

x = np.random.default_rng(0).standard_normal((8192, 4096), np.float32)
if sys.argv[2] != "float32":
    import ml_dtypes
    x = x.astype(sys.argv[2])
edgekit.encode(x[:2], sys.argv[1], backend="reference")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
output = sum(part.nbytes for part in edgekit.encode(x, sys.argv[1], backend="reference").parts.values())
print(json.dumps({"extra": kilobytes("VmHWM") - before - output}))
"""


def encode_report() -> list[str]:
    """Peak memory of encoding 33.6 million weights beyond input and output, for each convention (Linux only)."""
    if not Path("/proc/self/clear_refs").exists():
        return ["Memory of encode: not measured, it needs Linux."]
    lines = [
        "Peak memory of encoding 33.6 million weights beyond input and output, by the source's type; allowed are 64 MB:",
        "",
        "| precision | float32 | float16 | bfloat16 | |",
        "|---|---|---|---|---|",
    ]
    for name in (
        "ggml:Q4_K",
        "ggml:Q8_0",
        "mlx:int4-g64",
        "openvino:int4-sym-g64",
        "openvino:int4-asym-g64",
        "openvino:nvfp4",
        "onnx:int4-sym-g32",
        "onnx:qdq_int4-asym-g32",
        "olive:int4-asym-g32",
        "affine:int3-asym-g32",
        "affine:int1-sym-tensor",
    ):
        extras = [_extra(name, dtype) for dtype in ("float32", "float16", "bfloat16")]
        verdict = "kept" if max(extras) <= 64e6 else "**exceeded**"
        lines.append(f"| `{name}` | {' | '.join(f'{extra / 1e6:.1f} MB' for extra in extras)} | {verdict} |")
    return lines


def _extra(name: str, dtype: str) -> int:
    done = subprocess.run([sys.executable, "-c", _ENCODE, name, dtype], capture_output=True, text=True, check=True)
    extra: int = json.loads(done.stdout)["extra"]
    return extra


def write_random_llama(folder: Path, nbytes: int) -> int:
    """Write a Hugging Face directory of random F32 weights, tensor by tensor; gives the largest tensor's bytes."""
    width, ffn, vocab = 2048, 8192, 16000
    layer = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (width // 4, width),
        "self_attn.v_proj.weight": (width // 4, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
    }
    per_layer = 4 * sum(int(np.prod(shape)) for shape in layer.values())
    layers = max(1, round((nbytes - 4 * vocab * width) / per_layer))
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_safetensors(folder / "model.safetensors", shapes)
    return max(4 * int(np.prod(shape)) for shape in shapes.values())


def _write_safetensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            stream.write((rng.standard_normal(shape, np.float32) * np.float32(0.02)).tobytes())
