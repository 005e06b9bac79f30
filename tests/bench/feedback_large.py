"""Time and memory of calibration and rounding with error feedback: of a random Llama of 1.1 billion weights, of SmolLM2.

python tests/bench/bench.py --only feedback-large

Each step is a process of its own on all cores; minutes are those of the clock on the wall.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import quality
from child import printed
from llama_model import Shape, write_llama

#: The widths of TinyLlama, 1.1 billion weights.
LARGE = Shape(layers=22, width=2048, ffn=5632, heads=32, kv_heads=4, vocab=32_000)
TOKENS, CONTEXT = 4096, 512

_JOB = """
import json, re, sys, time
from pathlib import Path
import numpy as np
import edgekit
from edgekit.pipeline.rounding import read_calibration
step, source, tokens, context, calibration, recipe, target = sys.argv[1:]
start, spent = time.perf_counter(), time.process_time()
if step == "calibrate":
    edgekit.calibrate(source, np.load(tokens), context=int(context), holdout=0, to=calibration)
else:
    edgekit.quantize(source, recipe, to=target, calibration=read_calibration(Path(calibration)))
status = Path("/proc/self/status")
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1]) * 1024 if status.exists() else 0
print(json.dumps({"wall": time.perf_counter() - start, "cpu": time.process_time() - spent, "peak": peak}))
"""


def report(quick: bool) -> Iterator[str]:
    """Yield the lines of a table; `quick` leaves out the large model."""
    yield "| model | step | seconds | CPU s | peak memory |"
    yield "|---|---|---|---|---|"
    for subject in quality.subjects(quick):
        if subject.name != "stories260K":
            yield from _steps(subject.name, subject.source, subject.calibration, subject.context, "Q4_0")
    if quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        source = write_llama(Path(folder) / "large.gguf", LARGE)
        tokens = np.random.default_rng(1).integers(3, LARGE.vocab, TOKENS)
        yield from _steps("random Llama, 1.1 billion weights", source, tokens, CONTEXT, "Q4_K_M")


def _steps(name: str, source: Path, tokens: np.ndarray, context: int, recipe: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "tokens.npy"
        np.save(saved, tokens)
        for step in ("calibrate", "quantize"):
            found = timed_step(step, source, saved, context, folder, recipe)
            what = f"{len(tokens)} tokens" if step == "calibrate" else f"`{recipe}` with feedback"
            memory = f"{found['peak'] / 1e6:.0f} MB"
            yield f"| {name} | {step}, {what} | {found['wall']:.0f} | {found['cpu']:.0f} | {memory} |"


def timed_step(step: str, source: Path, tokens: Path, context: int, folder: str, recipe: str) -> dict[str, float]:
    """Calibrate, or quantize with the calibration, in a process of its own on all cores.

    Args:
        step: `calibrate` or `quantize`.
        source: the model.
        tokens: token ids, a file of numpy.
        context: tokens of a window.
        folder: where the calibration and the quantized model are written.
        recipe: of the quantized model.

    Returns:
        Seconds of the clock (`wall`) and of all threads (`cpu`), and the process's peak memory in bytes (`peak`).
    """
    given = [str(source), str(tokens), str(context), f"{folder}/c.safetensors", recipe, f"{folder}/s.gguf"]
    threads = {"OPENBLAS_NUM_THREADS": "1", "EDGEKIT_NUMBA_THREADS": str(os.cpu_count() or 1)}
    return printed(_JOB, step, *given, environment=threads)


if __name__ == "__main__":
    for line in report(quick=False):
        print(line, flush=True)
