"""Speed and memory, side by side with the frameworks' own code in one run, as ratios.

python tests/bench/bench.py [--quick] [--only TEXT] [--markdown FILE] [--cpu NAME] [--gigabytes N] [--to DIR]
                            [--files DIR]

Rounds of all contenders are interleaved and the median of each counts, because machines are noisy: compare the
ratios of one run, never figures of two. Speeds are GB/s of float32 (input of encode, output of decode), one thread
unless the row says otherwise, by processor time, which other processes disturb less than the clock on the wall: that of
all threads of the process, and with two threads that of the busier one.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import cast

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "EDGEKIT_NUMBA_THREADS"):
    os.environ.setdefault(variable, "1")

sys.path.insert(0, str(Path(__file__).parent))

import any_size  # noqa: E402
import autoround  # noqa: E402
import commands  # noqa: E402
import divergence_chart  # noqa: E402
import experts  # noqa: E402
import families  # noqa: E402
import feedback_large  # noqa: E402
import fit_large  # noqa: E402
import fit_quality  # noqa: E402
import generation  # noqa: E402
import grids  # noqa: E402
import held  # noqa: E402
import llamacpp  # noqa: E402
import mlx_learned  # noqa: E402
import mlx_report  # noqa: E402
import mlx_smollm2  # noqa: E402
import mlx_tolerances  # noqa: E402
import numpy as np  # noqa: E402
import onnx_builder  # noqa: E402
import onnx_smollm2  # noqa: E402
import onnx_weights  # noqa: E402
import openai_servers  # noqa: E402
import openvino_compress  # noqa: E402
import openvino_runtime  # noqa: E402
import peers  # noqa: E402
import perplexity_tool  # noqa: E402
import quality  # noqa: E402
import recurrent  # noqa: E402
import whole  # noqa: E402
import workflow_predictions  # noqa: E402
from case import Case, Job, timed  # noqa: E402
from memory import encode_report, streaming_report  # noqa: E402
from processes import forget_fresh_libraries  # noqa: E402

import clusters  # noqa: E402


def quality_and_picture(quick: bool) -> Iterator[str]:
    """The tables of quality, then the picture of them."""
    lines = []
    for line in chain(quality.report(quick), fit_quality.report(quick)):
        lines.append(line)
        yield line
    if not quick:
        yield ""
        yield divergence_chart.draw(lines)


SHAPE = (1024, 4096)  # 16 MiB of float32: larger than a core's own caches
_QUICK = 0.05  # seconds
#: Reports that take longer.
REPORTS: dict[str, Callable[[bool], Iterator[str]]] = {
    "file-to-file": lambda quick: whole.file_to_file(3 if quick else whole.ROUNDS),
    "scaling": whole.scaling,
    "dask": clusters.report,
    "iq": grids.report,
    "commands": commands.report,
    "generation": generation.report,
    "startup": lambda quick: whole.startup(),
    "llamacpp": llamacpp.report,
    "servers": openai_servers.report,
    "openvino-runtime": openvino_runtime.report,
    "mlx-lm": mlx_report.report,
    "mlx-learned": mlx_learned.report,
    "mlx-tolerances": mlx_tolerances.report,
    "mlx-smollm2": mlx_smollm2.report,
    "openvino-compress": openvino_compress.report,
    "onnx-weights": onnx_weights.report,
    "onnx-smollm2": onnx_smollm2.report,
    "onnx-builder": onnx_builder.report,
    "quality": quality_and_picture,
    "fit-smollm2": fit_quality.real,
    "feedback-large": feedback_large.report,
    "autoround": autoround.report,
    "fit-large": fit_large.report,
    "forward": recurrent.report,
    "families": families.report,
    "seven-billion": lambda quick: whole.seven_billion(),
    "predictions": workflow_predictions.report,
    "perplexity-tool": perplexity_tool.report,
    "experts": lambda quick: experts.report(0.4, 1) if quick else experts.report(),
    "any-size": lambda quick: any_size.report(),
    "held": held.report,
}
#: Reports that run only when they are asked for.
ALONE = (
    "scaling", "held", "dask", "seven-billion", "experts", "any-size", "feedback-large", "fit-smollm2", "mlx-tolerances",
    "mlx-smollm2", "predictions", "autoround", "fit-large", "perplexity-tool",
)  # fmt: skip
#: Processors that stand for the narrower instruction sets.
NARROWER = ("haswell", "x86-64")


def cases(decoders: bool) -> Iterator[Case]:
    """Every comparison that the installed frameworks allow."""
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    target = np.empty_like(x)
    keep_freed_memory(x.nbytes)
    yield Case("read", "numpy", x.nbytes, {"edgekit": x.max})
    yield Case("copy", "numpy", x.nbytes, {"edgekit": lambda: np.copyto(target, x)})
    yield from peers.encoders(x)
    yield from two_threads(x)
    if decoders:
        yield from peers.decoders(x)


def keep_freed_memory(nbytes: int) -> None:
    """Have glibc keep freed memory for the next row, as it does from the first block of that size that was freed.

    Without it, rows with small results pay for fresh pages in each round, unless rows with larger ones came before.
    """
    np.empty(nbytes, np.uint8)


def two_threads(x: np.ndarray) -> Iterator[Case]:
    """The encoders again, half of the rows in each of two threads.

    MLX keeps threads of its own, and NNCF one compiled function that only one thread may call: they sit out.
    """
    pool = ThreadPoolExecutor(2)
    half = len(x) // 2
    for one, other in zip(peers.encoders(x[:half]), peers.encoders(x[half:]), strict=True):
        jobs = {
            name: partial(both, pool, job, other.jobs[name])
            for name, job in one.jobs.items()
            if name not in ("mlx", "nncf")
        }
        yield Case(one.what.replace("encode", "encode, 2 threads"), one.precision, x.nbytes, jobs, busier)


def both(pool: ThreadPoolExecutor, *jobs: Job) -> float:
    """Run jobs at the same time and wait for all; gives the seconds of the busier thread."""
    return max(future.result() for future in [pool.submit(timed, job, time.thread_time) for job in jobs])


def busier(job: Job) -> float:
    """Seconds of a job that says itself what it took."""
    return cast(float, job())


def medians(case: Case, rounds: int) -> dict[str, float]:
    """Median seconds of each job over interleaved rounds.

    Quick ones run once more before each time that counts, so that none pays for the caches and the memory that
    another has left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in case.jobs}
    quick = {name: case.clock(job) < _QUICK for name, job in case.jobs.items()}
    for _ in range(rounds):
        for name, job in case.jobs.items():
            if quick[name]:
                job()
            seconds[name].append(case.clock(job))
    return {name: median(all_) for name, all_ in seconds.items()}


def row(case: Case, rounds: int) -> list[str]:
    """One line of the table: edgekit's speed, and for each peer its speed and edgekit's ratio to it."""
    seconds = medians(case, rounds)
    own = seconds.pop("edgekit")
    against = [f"{peer} {case.nbytes / s / 1e9:.3f} → **{s / own:.2f}×**" for peer, s in seconds.items()]
    return [case.what, f"`{case.precision}`", f"{case.nbytes / own / 1e9:.3f}", "; ".join(against) or "–"]


def table(only: str, rounds: int, few: bool) -> Iterator[str]:
    """The comparisons whose line contains the text; with `few`, against libggml alone."""
    yield "| what | precision | edgekit GB/s | peers: GB/s → edgekit's ratio |"
    yield "|---|---|---|---|"
    for case in cases(decoders=not only.startswith("encode")):
        if only in f"{case.what} {case.precision}":
            yield "| " + " | ".join(row(case if not few else case.against("libggml"), rounds)) + " |"


def narrower(quick: bool) -> Iterator[str]:
    """The kernels' rows on narrower instruction sets, each in a process of its own."""
    for cpu in NARROWER if peers.has("edgekit_numba") and platform.machine() in ("x86_64", "AMD64") else ():
        command = [sys.executable, __file__, "--cpu", cpu, "--only", "encode (numba", *["--quick"] * quick]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield from (line for line in done.stdout.splitlines() if line.startswith("| encode"))


def report(only: str, quick: bool, few: bool) -> Iterator[str]:
    """All lines, as they come."""
    yield f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}."
    yield ""
    if only in REPORTS:
        yield from REPORTS[only](quick)
        return
    yield from table(only, 3 if quick else 7, few)
    if not only:
        yield from narrower(quick)
        yield from ["", streaming_report(200_000_000 if quick else 2_000_000_000), "", *encode_report()]
        if peers.has("edgekit_numba") and peers.has("llama_cpp"):
            for name in (name for name in REPORTS if name not in ALONE):
                yield ""
                yield from REPORTS[name](quick)


def main() -> None:
    """Run, print the report as it grows, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a smaller model for the memory figure")
    parser.add_argument("--only", default="", help=f"one of {', '.join(REPORTS)}; or rows that contain this text")
    parser.add_argument("--markdown", type=Path, help="write the report there as well")
    parser.add_argument("--cpu", help="a processor whose instruction set edgekit-numba is to use (haswell: AVX2)")
    parser.add_argument(
        "--gigabytes", type=float, help="size of the model of experts, or of the part of any-size that is converted"
    )
    parser.add_argument("--to", type=Path, help="directory of the scaling's picture; docs/images by default")
    parser.add_argument("--files", type=Path, help="directory of the files of scaling and dask (/dev/shm: in memory)")
    options = parser.parse_args()
    if options.to or options.files:
        REPORTS["scaling"] = lambda quick: whole.scaling(quick, options.to, options.files)
        REPORTS["dask"] = lambda quick: clusters.report(quick, options.files)
    if options.gigabytes:
        REPORTS["experts"] = lambda quick: experts.report(options.gigabytes)
        REPORTS["any-size"] = lambda quick: any_size.report(options.gigabytes)
    if options.cpu:
        os.environ["NUMBA_CPU_NAME"] = options.cpu
    forget_fresh_libraries()
    lines = []
    for line in report(options.only, options.quick, bool(options.cpu)):
        print(line, flush=True)
        lines.append(line)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
