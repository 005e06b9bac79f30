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
        ``load`` and ``first`` in seconds, ``gaps`` between tokens and ``cpu`` seconds of each repeat, ``joules`` of the
        repeats that count or None: of the round whose speed varied least. ``rounds``, how many there were; ``peak`` and
        ``before`` in bytes and ``others``, the share of the processors that other programs used, over all of them.
    """
    spent = processors()
    import edgekit

    before, start = resident(), time.perf_counter()
    artifact = edgekit.open(job["path"])
    with edgekit.load(artifact, job["runtime"], **job["options"]) as model:
        load = time.perf_counter() - start
        vocab, predicts = _vocabulary(artifact)
        rounds: list[dict[str, Any]] = []
        deviations: list[float] = []
        for number in range(job["rounds"]):
            rounds.append(_round(model, job, number, vocab, predicts))
            if job["deviation"] is None or not predicts:
                break
            deviations.append(_deviation(rounds[-1]))
            if deviations[-1] <= job["deviation"]:
                break
    steadiest = deviations.index(min(deviations)) if deviations else 0
    whole, others = (after - earlier for after, earlier in zip(processors(), spent, strict=True))
    return {
        **rounds[steadiest],
        "load": load,
        "rounds": len(rounds),
        "peak": peak_memory(),
        "before": before,
        "others": min(1.0, max(0.0, others / whole)) if whole > 0 else 0.0,
    }


def processors() -> tuple[float, float]:
    """Seconds of all processors since the system started: in all, and those of other programs than this process."""
    import psutil

    kinds = psutil.cpu_times()._asdict()
    # Linux counts a guest's seconds as the user's too.
    whole = sum(seconds for kind, seconds in kinds.items() if not kind.startswith("guest"))
    return whole, whole - kinds["idle"] - kinds.get("iowait", 0.0) - time.process_time()


def _round(model: Any, job: Mapping[str, Any], number: int, vocab: int, predicts: bool) -> dict[str, Any]:
    """Run the repeats once, after those that warm up, with prompts that no earlier round had."""
    first: list[float] = []
    gaps: list[list[float]] = []
    cpu: list[float] = []
    joules = None
    count = job["warmup"] + job["repeats"]
    for repeat in range(count):
        prompt = prompt_of(number * count + repeat, job["prompt_tokens"], vocab)
        counter = energy()
        times, used = _generated(model, prompt, job["tokens"]) if predicts else _embedded(model, prompt)
        if repeat >= job["warmup"]:
            first.append(times[0])
            gaps.append([after - before for before, after in itertools.pairwise(times)])
            cpu.append(used)
            after = energy()
            if counter is not None and after is not None:
                joules = (joules or 0.0) + max(0.0, after - counter)
    return {"first": first, "gaps": gaps, "cpu": cpu, "joules": joules}


def _deviation(measured: Mapping[str, Any]) -> float:
    """The standard deviation of a round's tokens a second of processor time, relative to their mean."""
    speeds = [len(gaps) / used for gaps, used in zip(measured["gaps"], measured["cpu"], strict=True)]
    mean = statistics.fmean(speeds)
    return statistics.stdev(speeds) / mean if mean else 0.0  # an end token may leave no token after the first


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


__all__ = ["energy", "main", "measured", "peak_memory", "processors", "prompt_of", "resident"]

if __name__ == "__main__":
    main()
