"""The types on grids, IQ1 to IQ3: edgekit-numba's encoders beside ggml's own in C, one thread each, bytes compared.

python tests/bench/bench.py --only iq
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import peers

import edgekit
from edgekit.precision.ggml import GRIDS

ROUNDS = 7
SHAPE = (128, 4096)


def report(quick: bool = False) -> Iterator[str]:
    """The table: medians of interleaved rounds, by processor time, with an importance matrix."""
    from edgekit_numba.compiler import processor

    rounds = 3 if quick else ROUNDS
    random = np.random.default_rng(1)
    x = (random.standard_normal(SHAPE) * 0.02).astype(np.float32)
    importance = np.square(random.standard_normal(SHAPE[1])).astype(np.float32)
    yield f"{SHAPE[0]} x {SHAPE[1]} normal weights with an importance matrix, {processor().instruction_set}, one thread; GB/s"
    yield f"of float32 by processor time, medians of {rounds} interleaved rounds."
    yield ""
    yield "| type | edgekit-numba | ggml's C | ratio | bytes |"
    yield "|---|---|---|---|---|"
    for kind in GRIDS:
        own, theirs, equal = _compared(kind, x, importance, rounds)
        speeds = f"{x.nbytes / own / 1e9:.4f} | {x.nbytes / theirs / 1e9:.4f} | **{theirs / own:.1f}×**"
        yield f"| {kind} | {speeds} | {'equal' if equal else '**different**'} |"


def _compared(kind: str, x: np.ndarray, importance: np.ndarray, rounds: int) -> tuple[float, float, bool]:
    """Seconds of both, and whether their bytes are equal."""
    ggml = peers.Ggml()
    peer = ggml.encoder(x, GRIDS[kind].id, importance)
    ggml.library.ggml_quantize_init(GRIDS[kind].id)  # its tables; the kernels' are made by the first call, too
    encoded = edgekit.encode(x, f"ggml:{kind}", backend="numba", importance=importance).parts["blocks"]
    blocks = np.empty(encoded.size, np.uint8)
    ggml.library.ggml_quantize_chunk(
        GRIDS[kind].id, x.ctypes.data, blocks.ctypes.data, 0, *x.shape, importance.ctypes.data
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for job, into in zip((lambda: edgekit.encode(x, f"ggml:{kind}", backend="numba", importance=importance), peer),
                             seconds, strict=True):  # fmt: skip
            start = time.process_time()
            job()
            into.append(time.process_time() - start)
    return median(seconds[0]), median(seconds[1]), np.array_equal(encoded.ravel(), blocks)
