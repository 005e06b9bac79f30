"""Predicted beside measured memory and speed, for every runtime that is installed, on the sample model and a larger one.

python tests/bench/workflow_predictions.py          a few minutes of processor time

One thread each: tokens for each second of processor time are not moved by other programs. The speed is predicted for
this machine's bandwidth as one thread reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
from llama_model import write_llama

import edgekit
from edgekit import sample
from edgekit.plugin import manager
from edgekit.tensor import EncodedTensor
from edgekit_workflow.bench import measure
from edgekit_workflow.hardware import measured_bandwidth, this_machine
from edgekit_workflow.memory import kind_of, memory_needed
from edgekit_workflow.speed import moved_bytes, predicted_speed

#: Format, recipe (None: as it is) and runtime.
CASES = (
    ("gguf", "Q8_0", "numpy"),
    ("gguf", "Q4_0", "llamacpp"),
    ("gguf", "Q4_K_M", "llamacpp"),
    ("gguf", "Q8_0", "llamacpp"),
    ("gguf", "F16", "llamacpp"),
    ("openvino", "INT4_SYM_G64", "openvino"),
    ("openvino", "INT8_ASYM", "openvino"),
    ("openvino", None, "openvino"),
    ("onnx", "MATMUL_NBITS_4", "onnxruntime"),
    ("onnx", "INT8_CHANNEL", "onnxruntime"),
    ("onnx", None, "onnxruntime"),
    ("mlx", "4bit", "mlx"),
    ("mlx", "8bit", "mlx"),
    ("mlx", None, "mlx"),
)
PROMPT, TOKENS = 32, 24


def report() -> Iterator[str]:
    """Rows of a table."""
    machine = attrs.evolve(this_machine(bandwidth=False), cores=1, threads=1, bandwidth=measured_bandwidth(1))
    yield f"{machine.processor}, one thread, {machine.bandwidth / 1e9:.1f} GB/s\n"  # type: ignore[operator]
    yield "| model | runtime | recipe | peak MB | predicted | | tokens/cpu s | predicted | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    known = {registration.name for registration in manager().all("runtimes")}
    with tempfile.TemporaryDirectory() as folder:
        sources = {"sample": sample.path(), "225 MB": write_llama(Path(folder) / "source.gguf")}
        for name, source in sources.items():
            for number, (format_name, recipe, runtime) in enumerate(CASES):
                if runtime in known:
                    to = Path(folder) / f"{name.split()[0]}-{number}{'.gguf' if format_name == 'gguf' else ''}"
                    artifact = (
                        edgekit.convert(source, to, format=format_name)
                        if recipe is None
                        else edgekit.quantize(source, recipe, to=to, format=format_name)
                    )
                    yield f"| {name} | {runtime} | {recipe} | {row(artifact, runtime, machine)} |"


def row(artifact, runtime, machine) -> str:  # type: ignore[no-untyped-def]
    """Cells of one artifact."""
    options = {} if runtime in ("numpy", "mlx") else {"threads": 1}
    done = measure(artifact, runtime, prompt_tokens=PROMPT, tokens=TOKENS, repeats=3, options=options)
    config, roles = artifact.model.config, artifact.model.roles
    length = None if runtime == "llamacpp" else PROMPT + TOKENS
    memory = memory_needed(artifact, length, runtime, prompt=PROMPT).total
    stored: dict[str, tuple[str, int]] = {}
    for name, tensor in artifact.tensors.items():
        decoded = runtime == "numpy" and isinstance(tensor, EncodedTensor)
        stored[roles.get(name, name)] = ("F32", 4 * tensor.size) if decoded else (kind_of(tensor), tensor.nbytes)
    speed = predicted_speed(
        config, moved_bytes(config, stored), runtime, machine, context=PROMPT + TOKENS // 2, threads=1
    )
    measured = done.tokens_per_cpu_second
    assert speed is not None
    assert measured is not None
    return (
        f"{done.peak_memory / 1e6:.1f} | {memory / 1e6:.1f} | {100 * (memory / done.peak_memory - 1):+.1f} % | "
        f"{measured.mean:.1f} | {speed:.1f} | {100 * (speed / measured.mean - 1):+.1f} %"
    )


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
