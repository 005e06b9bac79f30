"""Gates of performance: memory and speed against the source in F32, on the same runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit_workflow.bench import Interval, Measurement, measure
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.subject import Subject

#: Tokens of the prompt before the measured ones.
PROMPT = 8


def performance_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``performance``."""
    policy = subject.policy
    if policy.runs("memory_ratio"):
        yield memory_ratio(subject)
    timed = [name for name in ("speedup", "latency_variation") if policy.runs(name)]
    if not timed:
        return
    if not subject.generates:
        yield from (_unknown(name, "the model does not generate text") for name in timed)
        return
    ours = _measured(subject, subject.artifact)
    if "speedup" in timed:
        yield speedup(subject, ours)
    if "latency_variation" in timed:
        yield latency_variation(subject, ours)


def _unknown(name: str, why: str) -> GateResult:
    return GateResult(name, "performance", None, detail=why)


def memory_ratio(subject: Subject) -> GateResult:
    """The bytes of the tensors against those of the source in F32."""
    limit = subject.policy.performance.memory_ratio
    measured = subject.artifact.tensor_nbytes / max(1, 4 * subject.source.parameters)
    return GateResult("memory_ratio", "performance", measured <= limit, measured, limit)


def speedup(subject: Subject, ours: Measurement) -> GateResult:
    """Tokens a second of processor time against those of the source in F32, in the artifact's format."""
    limit = subject.policy.performance.speedup
    try:
        theirs = _baseline(subject, ours.runtime)
    except EdgekitError as error:
        return _unknown("speedup", f"the source cannot be measured in F32: {error}")
    measured = _speed(ours).mean / _speed(theirs).mean
    passed: bool | None = measured >= limit
    busy = ours.busy or theirs.busy
    if not passed and busy and _speed(ours).high / max(_speed(theirs).low, 1e-9) >= limit:
        passed = None  # other programs moved the speeds by more than the limit is away
    detail = f"on {ours.runtime}" + (f"; {busy}" if busy and not passed else "")
    return GateResult("speedup", "performance", passed, measured, limit, detail=detail)


def _baseline(subject: Subject, runtime: str) -> Measurement:
    """The source in F32 in the artifact's format, measured once for all artifacts of it."""
    form = subject.artifact.format
    known = subject.shared.speeds
    if (form, runtime) not in known:
        suffix = subject.artifact.path.suffix if subject.artifact.path.is_file() else ""
        with tempfile.TemporaryDirectory(prefix="edgekit-gate-") as folder:
            target = Path(folder) / f"baseline{suffix}"
            baseline = edgekit.convert(subject.source, target, format=form, dtype="F32")
            known[form, runtime] = _measured(subject, baseline)
    return known[form, runtime]


def latency_variation(subject: Subject, ours: Measurement) -> GateResult:
    """Half of the 95 % interval of the speed over the runs, relative to its mean; of processor time, as `speedup`.

    Of several rounds the steadiest counts. Where none is steady and other programs kept the processors busy, nothing is
    known of the artifact.
    """
    limit, speed = subject.policy.performance.latency_variation, ours.tokens_per_cpu_second
    measured = 0.0 if speed is None else (speed.high - speed.mean) / speed.mean
    passed: bool | None = measured <= limit
    if not passed and ours.busy:
        passed = None
    detail = f"on {ours.runtime}" + (f"; {ours.busy}" if ours.busy and not passed else "")
    return GateResult("latency_variation", "performance", passed, measured, limit, detail=detail)


def _speed(measured: Measurement) -> Interval:
    assert measured.tokens_per_cpu_second is not None  # the model generates text
    return measured.tokens_per_cpu_second


def _measured(subject: Subject, artifact: Artifact) -> Measurement:
    how, context = subject.policy.performance, subject.artifact.model.config.context
    tokens = max(2, min(how.tokens, context - PROMPT))
    return measure(
        artifact,
        subject.runtime,
        prompt_tokens=PROMPT,
        tokens=tokens,
        repeats=how.repeats,
        rounds=how.rounds,
        settled=how.latency_variation,
    )


__all__ = ["performance_gates"]
