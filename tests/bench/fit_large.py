"""How long `fit` would take for a Llama of 1.1 billion weights: planned from its first layers, not run whole.

python tests/bench/bench.py --only fit-large

Random models with the widths of TinyLlama and one and two layers are fitted to 4.5 bits. A further layer costs what the
second one did, and each matrix before it a further pass of the text that chooses through it; such a pass is timed alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
from child import printed
from feedback_large import CONTEXT, LARGE
from llama_model import Shape, write_llama

import edgekit
from edgekit.architectures import Model
from edgekit.architectures.forward import Transformer

#: Of the text; half of its windows calibrate, a quarter of a quarter measures the tensors.
TOKENS = 10_240
MATRICES = 7
_JOB = """
import json, sys, time
import numpy as np
import edgekit
source, tokens, context, target = sys.argv[1:]
start, spent = time.perf_counter(), time.process_time()
fitted = edgekit.fit(source, np.load(tokens), to=target, bits=4.5, context=int(context), measure="one")
scored = fitted.sensitivity.positions
print(json.dumps({"wall": time.perf_counter() - start, "cpu": time.process_time() - spent, "scored": scored}))
"""


def report(quick: bool) -> Iterator[str]:
    """Yield the measured times and the planned one; `quick` takes narrow models."""
    whole = attrs.evolve(LARGE, width=512, ffn=1408, heads=8, kv_heads=2, vocab=4096) if quick else LARGE
    yield "| layers | seconds | CPU s | |"
    yield "|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        found = [_fitted(Path(folder), attrs.evolve(whole, layers=layers)) for layers in (1, 2)]
        scored = int(found[0]["scored"])
        further = _pass(edgekit.open(Path(folder) / "1.gguf").model, scored * 2)
    for layers, measured in enumerate(found, 1):
        yield f"| {layers} | {measured['wall']:.0f} | {measured['cpu']:.0f} | measured |"
    passes = MATRICES * sum(range(1, whole.layers - 1))
    planned = [
        found[0][what] + (whole.layers - 1) * (found[1][what] - found[0][what]) + passes * further
        for what in ("wall", "cpu")
    ]
    yield f"| {whole.layers} | {planned[0]:.0f} | {planned[1]:.0f} | planned |"
    yield ""
    yield f"{further:.2f} s for a pass of {scored * 2} tokens through a layer, of which there are {passes} more."


def _fitted(folder: Path, shape: Shape) -> dict[str, float]:
    source = write_llama(folder / f"{shape.layers}.gguf", shape)
    tokens = folder / "tokens.npy"
    np.save(tokens, np.random.default_rng(1).integers(3, shape.vocab, TOKENS))
    cores = str(os.cpu_count() or 1)
    threads = {"OPENBLAS_NUM_THREADS": cores, "EDGEKIT_NUMBA_THREADS": cores}
    return printed(
        _JOB, str(source), str(tokens), str(CONTEXT), str(folder / f"fit-{shape.layers}.gguf"), environment=threads
    )


def _pass(model: Model, count: int) -> float:
    """Seconds that `count` tokens take through the first layer, decoded anew as for models that are not kept."""
    computing = Transformer(model)
    windows = np.random.default_rng(2).integers(3, model.config.vocab, (max(1, count // CONTEXT), CONTEXT))
    states = computing.embedded(windows)
    start = time.perf_counter()
    computing.layer(0, states)
    return time.perf_counter() - start


__all__ = ["report"]
