"""Measures an artifact on a runtime: time to first token, tokens a second, latencies, memory, energy.

Each measurement runs in a process of its own (`edgekit_workflow.measuring`), so that the peak of the memory is this
artifact's alone. Prompts are token ids drawn with a fixed seed, another draw for each repeat: a runtime that keeps what
it computed of earlier texts would show no time to first token otherwise. Tokens are chosen greedily and no end token
stops them, so that every runtime does the same work.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

import edgekit.errors
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, PluginError, UsageError
from edgekit.runtime import choose_runtime
from edgekit_workflow.hardware import Machine, this_machine

#: What libraries of linear algebra read their number of threads from.
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
#: Confidence of the intervals.
CONFIDENCE = 0.95
#: Share of all processors' time from which on other programs are said to disturb a measurement.
BUSY = 0.1


@attrs.frozen
class Interval:
    """A mean with its interval of confidence, 95 % by Student's t over the repeats.

    Attributes:
        mean: over the repeats.
        low, high: the interval's ends; the mean itself where there was one repeat.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return the interval of measured values, at least one."""
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, mean, mean)
        half = _half(len(values)) * float(np.std(values, ddof=1))
        return cls(mean, mean - half, mean + half)


@attrs.frozen
class Measurement:
    """What was measured of an artifact on a runtime.

    Attributes:
        path, format: of the artifact.
        runtime: its name.
        options: that it was loaded with.
        machine: on which it ran.
        nbytes: of the artifact on disk.
        load_seconds: from nothing to a loaded model, libraries included.
        prompt_tokens, tokens: of each repeat.
        repeats: that counted; `warmup` more ran before them.
        warmup: repeats that do not count.
        first_token: seconds from the prompt to the first token.
        tokens_per_second: after the first token; None for encoders, whose `first_token` is a whole embedding.
        tokens_per_cpu_second: tokens for each second of one processor's time after the first token: less than
            `tokens_per_second` with several threads, and unmoved by other programs that keep the processor busy.
        p50, p95, p99: latency in seconds of a token after the first, over all repeats.
        latencies: the seconds of each token after the first, by repeat; empty for encoders.
        rounds: that were measured; the figures are those of the one whose speed varied least.
        others: share, 0 to 1, of all processors' time that other programs used meanwhile, or that a hypervisor gave to
            other machines; from before the artifact was loaded, over all rounds.
        peak_memory: most bytes resident at any time: libraries, weights and states.
        before: bytes resident before the artifact was loaded, with Python and edgekit alone.
        joules_per_token: energy of the processor's package, where the system shows it (Linux's powercap); else None.
    """

    path: str
    format: str
    runtime: str
    options: Mapping[str, Any]
    machine: Machine
    nbytes: int
    load_seconds: float
    prompt_tokens: int
    tokens: int
    repeats: int
    warmup: int
    first_token: Interval
    tokens_per_second: Interval | None
    tokens_per_cpu_second: Interval | None
    p50: float | None
    p95: float | None
    p99: float | None
    peak_memory: int
    before: int
    joules_per_token: float | None = None
    latencies: tuple[tuple[float, ...], ...] = ()
    rounds: int = 1
    others: float = 0.0

    @property
    def busy(self) -> str:
        """What to say of other programs; empty if they used less than `BUSY` of the processors."""
        if self.others < BUSY:
            return ""
        return f"the machine was busy: other programs used {self.others:.0%} of its processors"


def measure(
    artifact: Artifact,
    runtime: str | None = None,
    *,
    prompt_tokens: int = 32,
    tokens: int = 64,
    repeats: int = 5,
    warmup: int = 1,
    options: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    blas_threads: int | None = None,
    rounds: int = 1,
    settled: float = 0.0,
) -> Measurement:
    """Measure an artifact on a runtime, in a process of its own.

    Args:
        artifact: of any format that the runtime runs.
        runtime: name of an installed one; None takes the fastest for the format.
        prompt_tokens: of each prompt.
        tokens: to generate after it, at least 2; of an encoder none are.
        repeats: that count, at least 1.
        warmup: repeats before them.
        options: of the runtime, such as ``threads``.
        machine: described in the result; None describes this one, without its bandwidth.
        blas_threads: of the products of runtimes that leave them to BLAS, as numpy's does; None leaves BLAS its choice.
        rounds: of repeats at most; a further one is measured while the speed varies by more than `settled`, and the one
            that varies least counts.
        settled: half of the interval of `Measurement.tokens_per_cpu_second` relative to its mean, such as 0.25. It
            takes two repeats and a model that generates: without them there is one round.

    Raises:
        MissingPluginError: the runtime is not installed, or does not run the format.
        UsageError: a count out of range, or an option that the runtime does not have.
        ContextOverflowError: the prompt and the tokens do not fit the context.
        PluginError: the process ended without a result; the message has its last words.
    """
    _refuse_counts(prompt_tokens, tokens, repeats, warmup, rounds)
    name = choose_runtime(artifact, runtime).name
    job: dict[str, Any] = {
        "path": os.fspath(artifact.path),
        "runtime": name,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "repeats": repeats,
        "warmup": warmup,
        "options": dict(options or {}),
        "rounds": rounds,
        # In standard deviations, so that the process that measures memory does not load scipy.
        "deviation": settled / _half(repeats) if repeats > 1 else None,
    }
    raw = _run(job, {} if blas_threads is None else dict.fromkeys(_BLAS, str(blas_threads)))
    gaps = raw["gaps"]
    flat = [gap for one in gaps for gap in one]
    p50, p95, p99 = (float(q) for q in np.percentile(flat, (50, 95, 99))) if flat else (None, None, None)
    return Measurement(
        path=job["path"],
        format=artifact.format,
        runtime=name,
        options=job["options"],
        machine=machine or this_machine(bandwidth=False),
        nbytes=artifact.nbytes,
        load_seconds=raw["load"],
        prompt_tokens=prompt_tokens,
        tokens=1 + len(gaps[0]) if flat else 0,
        repeats=repeats,
        warmup=warmup,
        first_token=Interval.of(raw["first"]),
        tokens_per_second=Interval.of([len(one) / sum(one) for one in gaps]) if flat else None,
        tokens_per_cpu_second=_per_cpu(raw) if flat else None,
        p50=p50,
        p95=p95,
        p99=p99,
        peak_memory=raw["peak"],
        before=raw["before"],
        joules_per_token=raw["joules"] / (len(flat) + len(gaps)) if flat and raw["joules"] else None,
        latencies=tuple(map(tuple, gaps)) if flat else (),
        rounds=raw["rounds"],
        others=raw["others"],
    )


def _half(count: int) -> float:
    """Return half of the interval of the mean of `count` values, at least 2, in standard deviations of them."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) / math.sqrt(count)


def _per_cpu(raw: Mapping[str, Any]) -> Interval:
    return Interval.of([len(one) / used for one, used in zip(raw["gaps"], raw["cpu"], strict=True)])


def _refuse_counts(prompt_tokens: int, tokens: int, repeats: int, warmup: int, rounds: int) -> None:
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("tokens", tokens, 2),
        ("repeats", repeats, 1),
        ("warmup", warmup, 0),
        ("rounds", rounds, 1),
    ):
        if type(value) is not int or value < least:
            raise UsageError(f"{name} is {value!r:.40}; choose an integer of at least {least}")


def _run(job: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a job in a child process, and return its result; an error of edgekit's there is raised here."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekit_workflow.measuring"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    lines = done.stdout.splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        last = "; ".join(done.stderr.strip().splitlines()[-3:]) or "nothing"
        raise PluginError(
            f"{job['path']}: measuring it with the runtime {job['runtime']} ended with code {done.returncode}; "
            f"the process said: {last:.500}"
        ) from error
    if "error" in result:
        kind = getattr(edgekit.errors, result["kind"], PluginError)
        raise kind(result["error"]) if issubclass(kind, EdgekitError) else PluginError(result["error"])
    return result


__all__ = ["BUSY", "CONFIDENCE", "Interval", "Measurement", "measure"]
