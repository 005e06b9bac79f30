"""Two Dask workers beside two threads, file to file: each round in one process, the cluster already running.

python tests/bench/bench.py --only dask     2.1 GB of F16 to Q4_K_M; --files /dev/shm keeps the disk out
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
from whole import RECIPE

_LARGE = Shape(layers=4, width=4096, ffn=11008, heads=32, kv_heads=32, vocab=32_000)
#: Prints a line of JSON for each run: who, seconds, processor seconds of this process and of the workers.
_RUNS = f"""
import hashlib, json, os, sys, time
from pathlib import Path
import distributed, edgekit
from edgekit.pipeline.executors import connected
source, target, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
digests = set()

def spent(pid):
    fields = Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

def run(who, executor):
    target.unlink(missing_ok=True)
    before, mine, start = sum(map(spent, pids)), time.process_time(), time.perf_counter()
    made = edgekit.quantize(source, "{RECIPE}", to=target, executor=executor)
    seconds, mine = time.perf_counter() - start, time.process_time() - mine
    assert "sent_back" not in made.run_notes
    digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    print(json.dumps([who, seconds, mine, sum(map(spent, pids)) - before]), flush=True)

with distributed.LocalCluster(
    n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1", silence_logs="ERROR"
) as cluster:
    pids = [worker.pid for worker in cluster.workers.values()]
    with connected(cluster.scheduler_address.replace("tcp:", "dask:")) as workers:
        run("first", workers)
        run("warm", None)
        for _ in range(rounds):
            run("threads", None)
            run("dask", workers)
assert len(digests) == 1
"""


def report(quick: bool = False, files: Path | None = None) -> Iterator[str]:
    """The table, and Dask's share of the threads' throughput; bytes are compared.

    Args:
        quick: a small model, one round.
        files: directory of the source and the results, the temporary one by default; one in memory has no disk in it.
    """
    rounds = 1 if quick else 5
    with tempfile.TemporaryDirectory(dir=files) as folder:
        source, target = Path(folder) / "source.gguf", Path(folder) / "out.gguf"
        write_llama(source, Shape() if quick else _LARGE)
        size = source.stat().st_size / 1e9
        allowed = sorted(os.sched_getaffinity(0))[:2]
        done = subprocess.run(
            [sys.executable, "-c", _RUNS, str(source), str(target), str(rounds)],
            capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )  # fmt: skip
    runs: dict[str, list[list[float]]] = {}
    for who, *values in map(json.loads, filter(None, done.stdout.splitlines())):
        runs.setdefault(who, []).append(values)
    yield f"A random Llama of {size:.2f} GB (F16) to {RECIPE} on two cores; of {rounds} interleaved rounds the fastest by the"
    yield "clock and the least processor time count. The workers run already; their first conversion, in which they import"
    yield "edgekit and load the kernels, has a row of its own. The bytes are equal."
    yield ""
    yield "| who encodes | seconds | GB/s | processor seconds a GB: calling process, workers |"
    yield "|---|---|---|---|"
    for label, who in (("two threads", "threads"), ("two Dask workers", "dask"), ("the same, first", "first")):
        seconds, mine, theirs = (min(values) for values in zip(*runs[who], strict=True))
        yield f"| {label} | {seconds:.2f} | {size / seconds:.3f} | {mine / size:.2f}, {theirs / size:.2f} |"
    fastest = {who: min(seconds for seconds, *_ in values) for who, values in runs.items()}
    yield ""
    yield f"Dask's workers reach **{fastest['threads'] / fastest['dask']:.2f}×** the threads' throughput."
