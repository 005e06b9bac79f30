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
    ours = _measured(subject, subject.artifact, subject.runtime)
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
    theirs = _baseline(subject, ours.runtime)
    if isinstance(theirs, EdgekitError):
        return _unknown("speedup", f"the source cannot be written in F32: {theirs}")
    measured = _speed(ours).mean / _speed(theirs).mean
    return _judged("speedup", measured >= limit, measured, limit, ours, _disturbed(subject, ours, theirs))


def _baseline(subject: Subject, runtime: str) -> Measurement | EdgekitError:
    """The source in F32 in the artifact's format, or why it cannot be written.

    It is measured once for all artifacts of the source that are judged by the same policy, unless it was disturbed.
    """
    form, how = subject.artifact.format, subject.policy.performance
    known = subject.shared.speeds
    if (form, runtime, how) in known:
        return known[form, runtime, how]
    suffix = subject.artifact.path.suffix if subject.artifact.path.is_file() else ""
    with tempfile.TemporaryDirectory(prefix="edgekit-gate-") as folder:
        try:
            written = edgekit.convert(subject.source, Path(folder) / f"baseline{suffix}", format=form, dtype="F32")
        except EdgekitError as error:
            return error
        measured = _measured(subject, written, runtime)
    if not _disturbed(subject, measured):
        known[form, runtime, how] = measured
    return measured


def latency_variation(subject: Subject, ours: Measurement) -> GateResult:
    """Half of the 95 % interval of the speed over the runs, relative to its mean; of processor time, as `speedup`.

    Of several rounds the steadiest counts. If none is steady and other programs kept the processors busy, the result
    says so, and is neither passed nor failed; nor is a `speedup` that is too small then.
    """
    limit, measured = subject.policy.performance.latency_variation, _variation(ours)
    return _judged("latency_variation", measured <= limit, measured, limit, ours, _disturbed(subject, ours))


def _judged(name: str, passed: bool, measured: float, limit: float, ours: Measurement, disturbed: str) -> GateResult:
    """A result of speeds: one that is disturbed may pass, but does not fail."""
    detail = f"on {ours.runtime}" + (f"; {disturbed}" if disturbed and not passed else "")
    return GateResult(name, "performance", passed or (None if disturbed else False), measured, limit, detail=detail)


def _disturbed(subject: Subject, *measured: Measurement) -> str:
    """What to say of other programs that may be why a speed varies by more than the policy allows; empty if none is."""
    limit = subject.policy.performance.latency_variation
    return next((each.busy for each in measured if each.busy and _variation(each) > limit), "")


def _variation(measured: Measurement) -> float:
    speed = _speed(measured)
    return (speed.high - speed.mean) / speed.mean


def _speed(measured: Measurement) -> Interval:
    assert measured.tokens_per_cpu_second is not None  # the model generates text
    return measured.tokens_per_cpu_second


def _measured(subject: Subject, artifact: Artifact, runtime: str | None) -> Measurement:
    how, context = subject.policy.performance, subject.artifact.model.config.context
    tokens = max(2, min(how.tokens, context - PROMPT))
    return measure(
        artifact,
        runtime,
        prompt_tokens=PROMPT,
        tokens=tokens,
        repeats=how.repeats,
        rounds=how.rounds,
        settled=how.latency_variation,
    )


__all__ = ["performance_gates"]
