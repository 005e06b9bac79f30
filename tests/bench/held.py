"""The part of a conversion that does not get faster with cores: what is serial, or holds the interpreter.

python tests/bench/bench.py --only held

Counted is processor time, so that other load hardly matters: of each job of a worker without its kernels, reads, writes
and checksums, which let go of the interpreter; and of the calling thread, from Python's start to the opened result. What
these leave is a bound on the gain from cores, not a measurement of it: it leaves out the memory's and the disk's speed,
and counts numpy's copies as if all of them held the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llama_model import Shape, write_llama

#: 2.2 GB in float16; the small one is for a look.
_LARGE = Shape(layers=16, width=2048, ffn=8192, heads=16, kv_heads=4, vocab=30_000)
_ROUNDS = 3
_HELD = """
import json, os, sys, threading, time, zlib
import edgekit
from edgekit.pipeline import _placed
from edgekit_numba import library

clock, job, lock = time.thread_time, threading.local(), threading.Lock()
jobs = outside = 0.0

def letting_go(function):
    def called(*arguments):
        if not hasattr(job, "outside"):  # another thread's
            return function(*arguments)
        start = clock()
        result = function(*arguments)
        job.outside += clock() - start
        return result
    return called

def run_job(work, real=_placed.run_job):
    global jobs, outside
    job.outside, start = 0.0, clock()
    result = real(work)
    spent = clock() - start
    with lock:
        jobs, outside = jobs + spent, outside + job.outside
    del job.outside
    return result

kernels, real = {}, library.kernel
library.kernel = lambda name: kernels.get(name) or kernels.setdefault(name, letting_go(real(name)))
os.preadv, os.pwrite, zlib.crc32 = map(letting_go, (os.preadv, os.pwrite, zlib.crc32))
_placed.run_job = run_job
edgekit.quantize(sys.argv[1], "Q4_K_M", to=sys.argv[2])
print(json.dumps([jobs - outside, clock(), time.process_time()]))
"""


def report(quick: bool = False) -> Iterator[str]:
    """The share, and the bounds that follow from it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        source = write_llama(Path(folder) / "source.gguf", None if quick else _LARGE)
        runs = [_run(source, Path(folder) / "target.gguf") for _ in range(_ROUNDS)]
        held, calling, whole = min(runs, key=lambda run: run[0] + run[1])
        serial = held + calling
        yield (
            f"{source.stat().st_size / 1e9:.1f} GB of F16 to Q4_K_M, {len(os.sched_getaffinity(0))} cores, the best of "
            f"{_ROUNDS} runs: {whole:.1f} s of processor time, of which {calling:.2f} s in the calling thread (imports, "
            f"opening, layout, commit, opening the result) and {held:.2f} s of jobs in the interpreter: "
            f"{serial / whole:.1%} together. By that alone 2 cores can be {_bound(serial, whole, 2):.2f} times as fast as "
            f"one, 16 cores {_bound(serial, whole, 16):.1f} times."
        )


def _run(source: Path, target: Path) -> tuple[float, float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _HELD, str(source), str(target)], stdout=subprocess.PIPE, check=True, text=True
    )
    held, calling, whole = json.loads(done.stdout)
    return held, calling, whole


def _bound(serial: float, whole: float, cores: int) -> float:
    """Amdahl's law."""
    return whole / (serial + (whole - serial) / cores)


__all__ = ["report"]
