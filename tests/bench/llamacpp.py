"""edgekit with its llama.cpp plugin against llama.cpp itself: quantizing a file of 225 MB, and tokens per second.

Both quantize to Q4_K_M with the same number of threads, each run a process of its own, from `python` to its exit. Both
generate greedily from one file, in one process, in turn; llama-cpp-python is called through its own `Llama`.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_model import write_llama
from processes import Cost, alternate

RECIPE = "Q4_K_M"
#: What edgekit may take, as a share of llama.cpp's.
TIME, MEMORY, SPEED = 1.1, 1.2, 0.97


def report(quick: bool = False) -> Iterator[str]:
    """Lines of the report, as they come."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        source, small = write_llama(Path(folder) / "F16.gguf"), Path(folder) / "edgekit.gguf"
        yield from _files(source, small, threads, 3 if quick else 7)
        yield ""
        yield from _tokens(small, threads, 3 if quick else 7)


def _files(source: Path, small: Path, threads: int, rounds: int) -> Iterator[str]:
    theirs = small.with_name("llama.gguf")
    jobs = {
        "edgekit": ("llamacpp.quantize_edgekit", str(source), str(small), str(threads)),
        "llama.cpp": ("llamacpp.quantize_llama", str(source), str(theirs), str(threads)),
    }
    found = alternate(jobs, rounds)
    same = "the same bytes" if small.read_bytes() == theirs.read_bytes() else "**other bytes**"
    yield f"A random Llama of {source.stat().st_size / 1e6:.0f} MB (F16) to {RECIPE}, {threads} threads, {same}:"
    yield ""
    yield "| whole process | median s | runs | peak MB |"
    yield "|---|---|---|---|"
    for name, cost in found.items():
        runs = f"{min(cost.seconds):.2f} to {max(cost.seconds):.2f}"
        yield f"| {name} | {cost.typical:.2f} | {runs} | {cost.peak / 1e6:.0f} |"
    yield _ratios(found["edgekit"], found["llama.cpp"])


def _ratios(own: Cost, other: Cost) -> str:
    time_ratio, memory_ratio = own.typical / other.typical, own.peak / other.peak
    kept = "kept" if time_ratio <= TIME and memory_ratio <= MEMORY else "**exceeded**"
    return f"| ratio | **{time_ratio:.2f}** (at most {TIME}) | | **{memory_ratio:.2f}** (at most {MEMORY}): {kept} |"


def quantize_edgekit(source: str, target: str, threads: str) -> None:
    """The job of edgekit's process."""
    import edgekit

    with ThreadPoolExecutor(int(threads)) as executor:
        edgekit.quantize(source, RECIPE, to=target, backend="llamacpp", executor=executor)


def quantize_llama(source: str, target: str, threads: str) -> None:
    """The job of llama.cpp's process."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, int(threads)
    assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)) == 0


def _tokens(path: Path, threads: int, rounds: int, count: int = 64) -> Iterator[str]:
    """Tokens per second of a prompt's continuation; each round takes a new prompt, so that nothing is kept of it."""
    import llama_cpp

    import edgekit

    direct = llama_cpp.Llama(
        str(path), n_ctx=512, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    own = edgekit.load(path, "llamacpp", context=512, threads=threads)
    speeds: dict[str, list[float]] = {"edgekit": [], "llama-cpp-python": []}
    for number in range(rounds + 1):
        prompt = [1, *range(300 + 20 * number, 310 + 20 * number)]
        speeds["edgekit"].append(_speed(own.tokens(prompt, max_tokens=count), count))
        direct.reset()
        speeds["llama-cpp-python"].append(_speed(direct.generate(prompt, temp=0.0, reset=True), count))
    direct.close()
    own.close()
    best = {name: max(found[1:]) for name, found in speeds.items()}
    middle = {name: statistics.median(found[1:]) for name, found in speeds.items()}
    ratio = best["edgekit"] / best["llama-cpp-python"]
    yield f"Tokens per second of {path.stat().st_size / 1e6:.0f} MB in {RECIPE}, {threads} threads, {count} tokens:"
    yield ""
    yield "| called through | best | median |"
    yield "|---|---|---|"
    for name in speeds:
        yield f"| {name} | {best[name]:.1f} | {middle[name]:.1f} |"
    yield f"| ratio | **{ratio:.3f}** (at least {SPEED}: {'kept' if ratio >= SPEED else '**missed**'}) | |"


def _speed(tokens: Iterator[int], count: int) -> float:
    """Tokens per second, the prompt included."""
    start = time.perf_counter()
    for _ in range(count):
        next(tokens)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
