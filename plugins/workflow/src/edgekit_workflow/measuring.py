"""The process that `edgekit_workflow.bench` measures in: a job as JSON on stdin, its result as JSON on stdout."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Counters of energy in microjoules: Linux's powercap, of each processor package.
_ENERGY = "/sys/class/powercap/intel-rapl:*/energy_uj"


def peak_memory() -> int:
    """The most bytes that this process had resident."""
    return _resident("VmHWM")


def resident() -> int:
    """The bytes that this process has resident now."""
    return _resident("VmRSS")


def _resident(field: str) -> int:
    # Linux's VmHWM begins anew with the program; ru_maxrss begins with what the parent had when it forked.
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(field + r":\s*(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    import psutil

    now = psutil.Process().memory_info()
    if field == "VmRSS":
        return int(now.rss)
    if hasattr(now, "peak_wset"):  # Windows
        return int(now.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def energy() -> float | None:
    """Joules that the processor packages have used since some time; None where the system does not show it."""
    try:
        return sum(int(file.read_text()) for file in Path("/").glob(_ENERGY[1:])) / 1e6 or None
    except (OSError, ValueError):
        return None


def measured(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job of `edgekit_workflow.bench.measure`.

    Returns:
        ``load`` and ``first`` in seconds, ``gaps`` between tokens and ``cpu`` seconds of each repeat, ``peak`` and
        ``before`` in bytes, ``joules`` of the repeats that count or None; of the round whose speed varied least, and
        ``rounds``, how many there were, the last of which varied by no more than ``settled`` if there could be more.
    """
    import edgekit

    before, start = resident(), time.perf_counter()
    artifact = edgekit.open(job["path"])
    with edgekit.load(artifact, job["runtime"], **job["options"]) as model:
        load = time.perf_counter() - start
        vocab = _vocabulary(artifact)
        rounds = []
        for number in range(job["rounds"]):
            rounds.append(_round(model, job, number, vocab))
            if rounds[-1]["variation"] <= job["settled"]:
                break
    steadiest: dict[str, Any] = min(rounds, key=lambda each: float(each["variation"]))
    return {**steadiest, "load": load, "rounds": len(rounds), "peak": peak_memory(), "before": before}


def _round(model: Any, job: Mapping[str, Any], number: int, vocab: tuple[int, bool]) -> dict[str, Any]:
    """Run the repeats once, after those that warm up, with prompts that no earlier round had."""
    size, predicts = vocab
    first: list[float] = []
    gaps: list[list[float]] = []
    cpu: list[float] = []
    joules = None
    count = job["warmup"] + job["repeats"]
    for each in range(count):
        prompt = prompt_of(number * count + each, job["prompt_tokens"], size)
        counter = energy()
        times, used = _generated(model, prompt, job["tokens"]) if predicts else _embedded(model, prompt)
        if each >= job["warmup"]:
            first.append(times[0])
            gaps.append([after - before for before, after in itertools.pairwise(times)])
            cpu.append(used)
            after = energy()
            if counter is not None and after is not None:
                joules = (joules or 0.0) + max(0.0, after - counter)
    speeds = [len(one) / used for one, used in zip(gaps, cpu, strict=True) if used > 0]
    varies = len(speeds) > 1 and predicts
    variation = job["interval"] * statistics.stdev(speeds) / statistics.fmean(speeds) if varies else 0.0
    return {"first": first, "gaps": gaps, "cpu": cpu, "joules": joules, "variation": variation}


def _vocabulary(artifact: Any) -> tuple[int, bool]:
    """The number of tokens, and whether the model predicts next ones."""
    from edgekit.errors import UnsupportedModelError

    try:
        config = artifact.model.config
        return config.vocab, config.causal
    except UnsupportedModelError:
        tokenizer = artifact.tokenizer
        if tokenizer is None:
            raise
        return len(tokenizer.tokens), True


def prompt_of(number: int, length: int, vocab: int) -> list[int]:
    """The token ids of a repeat's prompt: the same for every runtime, others for every repeat."""
    import numpy as np

    drawn = np.random.default_rng(number).integers(0, vocab, length)
    return [int(token) for token in drawn]


def _generated(model: Any, prompt: list[int], count: int) -> tuple[list[float], float]:
    """Seconds since the prompt of each token, and the processor's seconds after the first."""
    times, used, start = [], 0.0, time.perf_counter()
    for _ in _tokens(model, prompt, count):
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            used = time.process_time()
    return times, time.process_time() - used


def _tokens(model: Any, prompt: list[int], count: int) -> Iterator[object]:
    """One item a token; of a runtime without `tokens` the pieces of its text, which end tokens may cut short."""
    tokens = getattr(model, "tokens", None)
    if tokens is not None:
        yield from tokens(prompt, max_tokens=count)
        return
    generation, seen = model.stream(prompt, max_tokens=count), 0
    for _ in generation:
        yield from range(generation.completion_tokens - seen)
        seen = generation.completion_tokens


def _embedded(model: Any, prompt: list[int]) -> tuple[list[float], float]:
    start, used = time.perf_counter(), time.process_time()
    model.embed(prompt)
    return [time.perf_counter() - start], time.process_time() - used


def main() -> None:
    """Read the job, run it, print the result: the last line on stdout."""
    from edgekit.errors import EdgekitError

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    job = json.load(sys.stdin)
    try:
        result = measured(job)
    except EdgekitError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    out.write(json.dumps(result) + "\n")
    out.flush()


__all__ = ["energy", "main", "measured", "peak_memory", "prompt_of", "resident"]

if __name__ == "__main__":
    main()
