"""Speed and memory, side by side with the frameworks' own code in one run, as ratios.

python tests/bench/bench.py [--quick] [--only TEXT] [--markdown FILE]      --only llamacpp, servers: one section alone

Rounds of all contenders are interleaved and the best of each counts, because machines are noisy: compare the
ratios of one run, never figures of two. Speeds are GB/s of float32 (input of encode, output of decode), one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "EDGEKIT_NUMBA_THREADS"):
    os.environ.setdefault(variable, "1")

sys.path.insert(0, str(Path(__file__).parent))

import llamacpp  # noqa: E402
import numpy as np  # noqa: E402
import openai_servers  # noqa: E402
import peers  # noqa: E402
from case import Case, Job  # noqa: E402
from memory import encode_report, streaming_report  # noqa: E402

SHAPE = (1024, 4096)  # 16 MiB of float32: larger than the caches


def cases() -> Iterator[Case]:
    """Every comparison that the installed frameworks allow."""
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    target = np.empty_like(x)
    yield Case("copy", "numpy", x.nbytes, {"edgekit": lambda: np.copyto(target, x)})
    yield from peers.encoders(x)
    yield from two_threads(x)
    yield from peers.decoders(x)


def two_threads(x: np.ndarray) -> Iterator[Case]:
    """The encoders again, half of the rows in each of two threads. MLX keeps threads of its own and sits out."""
    pool = ThreadPoolExecutor(2)
    half = len(x) // 2
    for one, other in zip(peers.encoders(x[:half]), peers.encoders(x[half:]), strict=True):
        jobs = {name: partial(both, pool, job, other.jobs[name]) for name, job in one.jobs.items() if name != "mlx"}
        yield Case(one.what.replace("encode", "encode, 2 threads"), one.precision, x.nbytes, jobs)


def both(pool: ThreadPoolExecutor, *jobs: Job) -> None:
    """Run jobs at the same time and wait for all."""
    for future in [pool.submit(job) for job in jobs]:
        future.result()


def fastest(jobs: dict[str, Job], rounds: int) -> dict[str, float]:
    """Best seconds of each job over interleaved rounds, after one to warm up."""
    best = dict.fromkeys(jobs, float("inf"))
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def row(case: Case, rounds: int) -> list[str]:
    """One line of the table: edgekit's speed, and for each peer its speed and edgekit's ratio to it."""
    seconds = fastest(case.jobs, rounds)
    own = seconds.pop("edgekit")
    against = [f"{peer} {case.nbytes / s / 1e9:.3f} → **{s / own:.2f}×**" for peer, s in seconds.items()]
    return [case.what, f"`{case.precision}`", f"{case.nbytes / own / 1e9:.3f}", "; ".join(against) or "–"]


def shown(report: Iterator[str]) -> Iterator[str]:
    """The lines, printed as they come."""
    for line in report:
        print(line, flush=True)
        yield line


def main() -> None:
    """Run, print the table as it grows, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a smaller model for the memory figure")
    parser.add_argument("--only", default="", help="only comparisons whose line contains this text")
    parser.add_argument("--markdown", type=Path, help="write the report there as well")
    options = parser.parse_args()
    lines = [f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, one thread.", ""]
    lines += ["| what | precision | edgekit GB/s | peers: GB/s → edgekit's ratio |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for case in cases():
        if options.only in f"{case.what} {case.precision}":
            lines.append("| " + " | ".join(row(case, 3 if options.quick else 7)) + " |")
            print(lines[-1], flush=True)
    if options.only in ("", "servers"):
        lines += ["", *shown(openai_servers.report(options.quick))]
    if options.only in ("", "llamacpp"):
        lines += ["", *shown(llamacpp.report(options.quick))]
    if not options.only:
        memory = ["", streaming_report(200_000_000 if options.quick else 2_000_000_000), "", *encode_report()]
        print("\n".join(memory))
        lines += memory
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
