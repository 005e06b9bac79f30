"""Time of calibration and rounding beside AutoRound's, in one run: signed gradient descent in torch.

python tests/bench/bench.py --only autoround                nox -s bench installs auto-round for it

Both sides get the same model in float32, the same tokens and all cores, each in a process of its own; AutoRound takes its
200 iterations for each block of layers. Of SmolLM2's 30 alike layers it gets one, whose time
counts 30 times, less what a single iteration takes. Without bfloat16 in the processor, AutoRound computes in float32.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import quality
from child import printed
from feedback_large import timed_step

import edgekit

ITERATIONS = 200
#: Recipes, and what AutoRound calls them.
RECIPES = {"sample": ("Q4_K_M", "gguf:q4_k_m"), "SmolLM2-135M": ("Q4_0", "gguf:q4_0")}

_JOB = """
import json, sys, time
import numpy as np
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer
source, tokens, context, scheme, layers, iterations, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
whole = model.config.num_hidden_layers
if int(layers):
    model.model.layers = model.model.layers[: int(layers)]
    model.config.num_hidden_layers = int(layers)
windows = np.load(tokens)
windows = windows[: len(windows) // int(context) * int(context)].reshape(-1, int(context)).astype(np.int64)
rounding = AutoRound(
    model, AutoTokenizer.from_pretrained(source), scheme=scheme, iters=int(iterations), seqlen=int(context),
    nsamples=len(windows), dataset=[torch.tensor(window[None]) for window in windows], enable_torch_compile=False,
)
start, spent = time.perf_counter(), time.process_time()
rounding.quantize()
print()
print(json.dumps({"wall": time.perf_counter() - start, "cpu": time.process_time() - spent, "layers": whole}))
"""


def report(quick: bool) -> Iterator[str]:
    """Yield the lines of a table; `quick` leaves out SmolLM2."""
    if find_spec("auto_round") is None:
        yield "auto-round is not installed: nox -s bench -- --only autoround"
        return
    yield "| model | recipe | tokens | edgekit: seconds, CPU s | AutoRound: seconds, CPU s | ratio, of CPU s |"
    yield "|---|---|---|---|---|---|"
    for subject in quality.subjects(quick):
        if subject.name in RECIPES:
            yield _row(subject, *RECIPES[subject.name])


def _row(subject: quality.Subject, recipe: str, scheme: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.npy"
        np.save(tokens, subject.calibration)
        steps = [
            timed_step(step, subject.source, tokens, subject.context, folder, recipe)
            for step in ("calibrate", "quantize")
        ]
        wall, cpu = (sum(step[what] for step in steps) for what in ("wall", "cpu"))
        edgekit.convert(subject.source, to=f"{folder}/source", format="hf", dtype="F32")
        few = subject.name != "sample"
        given = [f"{folder}/source", str(tokens), str(subject.context), scheme, str(int(few))]
        first = _autoround(*given, "1") if few else {}
        found = _autoround(*given, str(ITERATIONS))
    theirs = {
        what: first[what] + found["layers"] * (found[what] - first[what]) if few else found[what]
        for what in ("wall", "cpu")
    }
    times = f"{wall:.0f}, {cpu:.0f} | {theirs['wall']:.0f}, {theirs['cpu']:.0f}"
    return f"| {subject.name} | `{recipe}` | {len(subject.calibration)} | {times} | {cpu / theirs['cpu']:.3f} |"


def _autoround(*given: str) -> dict[str, float]:
    threads = str(os.cpu_count())
    return printed(_JOB, *given, threads, environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads})


__all__ = ["report"]
