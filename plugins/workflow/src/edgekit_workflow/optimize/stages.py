"""The stages of a run: baseline, convert, quantize, accelerate, validate. Each step is measured and recorded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import ChangedSourceError, EdgekitError, UsageError
from edgekit.evaluation import Baseline
from edgekit.files.digests import sha256
from edgekit.manifest import read_manifest
from edgekit.pipeline import Progress
from edgekit.pipeline.rounding import Calibration, read_calibration
from edgekit.plugin import manager
from edgekit.tensor import precision_name
from edgekit_workflow.gates import Policy, Shared, gate, read_policy
from edgekit_workflow.optimize.candidates import Candidate, Candidates
from edgekit_workflow.optimize.pareto import front
from edgekit_workflow.optimize.quality import measure_quality, noise_floor
from edgekit_workflow.optimize.records import RunDirectory
from edgekit_workflow.optimize.settings import Settings
from edgekit_workflow.optimize.texts import Texts
from edgekit_workflow.optimize.timing import Clock, Step

#: Runtimes that show how one is written, or that judge others, and are not measured unless they are asked for.
_UNHURRIED = ("example", "numpy")
#: Rounds of measuring a speed that varies by more than this share, so that other programs do not decide.
_ROUNDS, _SETTLED = 3, 0.25
#: The share of the time limit after which no further format is written unquantized, which is for comparison alone.
_CONVERTING = 0.3
Record = dict[str, Any]


def digests_of(source: Artifact) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file of a model, by name."""
    return {file.name: sha256(file) for file in source.files}


def versions() -> dict[str, str]:
    """Return the versions of the distributions whose code decides the bytes of artifacts."""
    names = sorted({plugin.distribution for plugin in manager().plugins} - {"edgekit-workflow"})
    return {name: metadata.version(name) for name in names}


class Stages:
    """Runs the stages, skipping the steps that an earlier run has recorded.

    Args:
        source: the model.
        settings: of the run.
        texts: to calibrate, choose and measure with.
        run: the open directory.
        candidates: what to try.
        digests: SHA-256 of the source's files when the run began.
        progress: called before each step.
    """

    def __init__(
        self,
        source: Artifact,
        settings: Settings,
        texts: Texts,
        run: RunDirectory,
        candidates: Candidates,
        digests: Mapping[str, str],
        progress: Progress | None = None,
    ) -> None:
        self.source, self.settings, self.texts, self.run, self.candidates = source, settings, texts, run, candidates
        self._digests = digests
        self._progress = progress
        self.clock = Clock(settings.time)
        self._done = 0
        self._speeds: dict[str, Record] = {}
        self._gates: dict[str, Record] = {}
        self._shared = Shared(source)
        #: Why an artifact was not gated, by its name.
        self._ungated: dict[str, str] = {}
        #: Why a candidate was left out, by its name.
        self.left_out = dict(candidates.left_out)
        self.tried = candidates.within()
        self.left_out |= candidates.left_out
        self._total = 2 + 2 * len(candidates.formats) + 2 * len(self.tried)

    @cached_property
    def baseline(self) -> Baseline:
        """The source, with its hidden states cached for all comparisons."""
        return Baseline(self.source)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of the source, from the run's file if it is of this model and text."""
        file = self.run.path / "calibration.safetensors"
        record = self.run.known("baseline", "calibration")
        if record is not None and file.exists() and sha256(file) == record["digest"]:
            return read_calibration(file)
        tokens = [*self.texts.calibration.tolist(), *self.texts.choosing.tolist()]
        made = edgekit.calibrate(
            self.source, tokens, to=file, context=self.texts.context, holdout=self.texts.holdout, overwrite=True
        )
        self.run.keep("baseline", "calibration", {"digest": sha256(file)})
        return made

    def all(self) -> Record:
        """Run every stage; return the records by stage, why candidates were left out, and what was not gated.

        Within a time limit the first artifact of every format is run and gated before a second one is made, cheap
        methods come first, and a candidate is begun only if there will be time to gate what is made.
        """
        baseline = self._baseline()
        converted = [r for name in self.candidates.formats if (r := self._converted(name))]
        made: list[Record] = []
        for candidate in self._ordered(made):
            needed = self._pending(made) + self._judging(candidate)
            record = self._attempt(_step_of(candidate), candidate.name, self._quantize, candidate, needed)
            if record:
                made.append(record)
                if self._is_first(record, made):
                    self._judge(record)
        best = self._best(made, baseline)
        ahead = [each for each in best if each["stage"] == "quantize"]
        for record in ahead:
            self._judge(record, [each for each in ahead if each is not record])
        for record in converted:
            self._accelerated(record, ahead)
        self._refuse_changed_source()
        self._report("")
        # In the order of the fronts, then what was judged early and is on none.
        judged = [*ahead, *(record for record in made if record not in ahead)]
        return {
            "baseline": baseline,
            "convert": converted,
            "quantize": made,
            "accelerate": [r for each in [*converted, *judged] if (r := self._speeds.get(each["name"]))],
            "validate": [r for each in judged if (r := self._gates.get(each["name"]))],
            "left_out": dict(sorted(self.left_out.items())),
            "not_gated": dict(sorted(self._not_gated(made, ahead).items())),
        }

    def _ordered(self, made: list[Record]) -> Iterator[Candidate]:
        """Yield the candidates: within a time limit those of formats of which nothing is made before all others."""
        waiting = list(self.tried)
        while waiting:
            formats = {record["format"] for record in made} if self.settings.time is not None else set()
            chosen = next((candidate for candidate in waiting if candidate.format not in formats), waiting[0])
            waiting.remove(chosen)
            yield chosen

    def _is_first(self, record: Record, made: Sequence[Record]) -> bool:
        """Whether a time limit asks for judging this artifact now: the first of its format within the budget."""
        budget = self.settings.budget
        within = [r for r in made if r["format"] == record["format"] and (budget is None or r["nbytes"] <= budget)]
        return self.settings.time is not None and within[:1] == [record]

    def _judge(self, record: Record, others: Sequence[Record] = ()) -> None:
        """Run an artifact on its runtimes, and pass it through the gates.

        Args:
            record: of the artifact.
            others: that must be gated too: time for their gates is not spent on this one's speed.
        """
        self._accelerated(record, [record, *others])
        name, step = record["name"], _step_of(record, "validate")
        if name not in self._gates and (validated := self._attempt(step, name, self._validate, record)):
            self._gates[name] = validated

    def _accelerated(self, record: Record, gated: Sequence[Record]) -> None:
        name, step = record["name"], _step_of(record, "accelerate")
        if name in self._speeds:
            return
        needed = self._gating(each for each in gated if each["name"] not in self._gates)
        if speeds := self._attempt(step, name, self._accelerate, record, needed):
            self._speeds[name] = speeds

    def _pending(self, made: list[Record]) -> float:
        """Seconds that running and gating what is on the formats' fronts will take, without what is done."""
        budget = self.settings.budget
        within = [record for record in made if budget is None or record["nbytes"] <= budget]
        waiting = [record for record in self._ahead(within) if record["name"] not in self._gates]
        return sum(self._judging(record) for record in waiting)

    def _judging(self, what: Candidate | Record) -> float:
        """Seconds that running and gating one artifact will take."""
        return sum(self.clock.predicted(_step_of(what, stage)) for stage in ("accelerate", "validate"))

    def _gating(self, records: Iterable[Record]) -> float:
        return sum(self.clock.predicted(_step_of(record, "validate")) for record in records)

    def _not_gated(self, made: Sequence[Record], ahead: Sequence[Record]) -> dict[str, str]:
        """Return why artifacts were not passed through the gates, by name."""
        if not self.settings.gates:
            return {}
        on_front = {record["name"] for record in ahead}
        names = (record["name"] for record in made if record["name"] not in self._gates)
        return {name: self._ungated.get(name, "") if name in on_front else _OFF_FRONT for name in names}

    def _converted(self, format_name: str) -> Record | None:
        step = Step("convert", format_name)
        late = self.settings.time is not None and self.clock.left < (1 - _CONVERTING) * self.settings.time
        return self._attempt(step, format_name, self._convert, format_name, float("inf") if late else 0.0)

    def _attempt(
        self, step: Step, name: str, do: Callable[[Any], Record], given: Any, needed: float = 0.0
    ) -> Record | None:
        """Do a step if there is time for it; what cannot be made is left out, with the reason.

        Args:
            step: what it is, for the prediction.
            name: of its record.
            do: does it, or finds its record.
            given: to `do`.
            needed: seconds that have to remain after it.

        Raises:
            ChangedSourceError: the source changed meanwhile.
        """
        self._report(name)
        done = self.run.known(step.stage, name) is not None
        if not done and (late := self._late(step, needed)):
            self._leave_out(step, name, late)
            return None
        try:
            with nullcontext() if done else self.clock.measuring(step):
                return do(given)
        except ChangedSourceError:
            raise
        except (EdgekitError, ValueError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, OSError):  # no space, no permission: of the run, not of the candidate
                raise
            self._refuse_changed_source()
            self._leave_out(step, name, str(error))
            return None

    def _leave_out(self, step: Step, name: str, why: str) -> None:
        reasons = self._ungated if step.stage == "validate" else self.left_out
        reasons[name] = f"{step.stage}: {why}"

    def _late(self, step: Step, needed: float) -> str:
        """Why a step no longer fits into the time that is left; empty if it does."""
        if self.settings.time is None:
            return ""
        left, predicted = self.clock.left, self.clock.predicted(step)
        if left > 0 and left >= predicted + needed:
            return ""
        limit = f"the time limit of {self.settings.time:g} s"
        if left <= 0 or not predicted:
            return limit
        after = f", and the gates that must follow {needed:.0f} s" if 0 < needed < float("inf") else ""
        return f"{limit}: {left:.0f} s were left, and it would take about {predicted:.0f} s{after}"

    def _report(self, name: str) -> None:
        if self._progress:
            self._progress(min(self._done, self._total), self._total, name)
        self._done += 1

    def _refuse_changed_source(self) -> None:
        """Raise if a file of the source is no longer what it was when the run began."""
        changed = sorted(file.name for file in self.source.files if _digest(file) != self._digests[file.name])
        if changed:
            raise ChangedSourceError(
                f"{self.source.path}: {', '.join(changed)} changed while the run worked; its records are of the model "
                "as it was: begin anew with --restart (restart=True)"
            )

    def _baseline(self) -> Record:
        self._report("baseline")
        known = self.run.known("baseline", "source")
        if known is not None:
            return known
        from edgekit_workflow.gates.security import origin, stated

        quality = measure_quality(self.baseline, self.source, self.texts.measuring)
        return self.run.keep(
            "baseline",
            "source",
            {
                "path": self.source.path.name,
                "format": self.source.format,
                "nbytes": self.source.nbytes,
                "parameters": self.source.parameters,
                "family": self.source.model.config.family,
                "origin": origin(self.source),
                "base_model": stated(self.source).get("base_model"),
                "license": stated(self.source).get("licence"),
                "noise_floor": noise_floor(self.baseline, self.texts.measuring),
                "quality": {**quality, "worst": []},
            },
        )

    def _convert(self, format_name: str) -> Record:
        """Write the model unquantized in a format."""
        known = self.run.known("convert", format_name)
        if known is not None:
            return known
        if self.candidates.layout(format_name) is None:
            raise UsageError(self.candidates.left_out[format_name])
        target = self.run.artifact("convert", f"{format_name}{self.candidates.suffix(format_name)}")
        artifact = edgekit.convert(self.source, target, format=format_name, overwrite=True)
        return self._keep("convert", format_name, artifact, "as it is", "none")

    def _quantize(self, candidate: Candidate) -> Record:
        known = self.run.known("quantize", candidate.name)
        if known is not None:
            return known
        artifact, sensitivities = self._made(candidate)
        return self._keep("quantize", candidate.name, artifact, candidate.recipe, candidate.method, sensitivities)

    def _made(self, candidate: Candidate) -> tuple[Artifact, list[Record]]:
        """Write a candidate; return it and, of a fit, the divergence of each tensor in each precision alone."""
        target = self.run.artifact("quantize", candidate.name + candidate.suffix)
        if candidate.method == "fit":
            fitted = edgekit.fit(
                self.source,
                to=target,
                size=candidate.nbytes,
                format=candidate.format,
                allow=self.settings.allow or None,
                calibration=self.calibration,
                work=self.run.path / "fit",
                overwrite=True,
            )
            return fitted.artifact, [attrs.asdict(each) for each in fitted.sensitivity.measured]
        artifact = edgekit.quantize(
            self.source,
            candidate.recipe,
            to=target,
            format=candidate.format,
            calibration=self.calibration if candidate.method == "feedback" else None,
            overwrite=True,
        )
        return artifact, []

    def _keep(
        self,
        stage: str,
        name: str,
        artifact: Artifact,
        recipe: str,
        method: str,
        sensitivities: Sequence[Record] = (),
    ) -> Record:
        manifest = read_manifest(artifact.path)
        record = {
            "format": artifact.format,
            "recipe": recipe,
            "method": method,
            "nbytes": artifact.nbytes,
            "bits_per_weight": 8 * artifact.tensor_nbytes / max(1, artifact.parameters),
            "quality": measure_quality(self.baseline, artifact, self.texts.measuring),
            "precisions": _precisions(artifact),
            "errors": {e.name: e.relative_rms for e in edgekit.compare(self.source, artifact).tensors},
            "sensitivities": list(sensitivities),
            "notes": dict(manifest.notes) if manifest else {},  # those of the run, such as what it replaced, are none
            "fallbacks": _fallbacks(manifest.tensors if manifest else {}),
        }
        return self.run.keep(stage, name, record, artifact.path)

    def _best(self, made: list[Record], baseline: Record) -> list[Record]:
        """Return the artifacts that are worth running: within the budget, on the front of quality and size."""
        budget = self.settings.budget
        for record in made:
            if budget is not None and record["nbytes"] > budget:
                self.left_out[record["name"]] = f"{record['nbytes']:,} bytes, above the budget of {budget:,}"
        inside = [record for record in made if budget is None or record["nbytes"] <= budget]
        if made and not inside:
            least = min(made, key=lambda record: record["nbytes"])
            raise UsageError(
                f"a budget of {budget:,} bytes: the smallest file that was made has {least['nbytes']:,} bytes "
                f"({least['name']}); give at least that, or choose a smaller model"
            )
        return self._ahead(inside, baseline["noise_floor"])

    @staticmethod
    def _ahead(inside: list[Record], noise: float = 0.0) -> list[Record]:
        """Return what is on the fronts of the formats, the formats in turn."""
        ahead: list[list[Record]] = []
        for format_name in dict.fromkeys(record["format"] for record in inside):
            of_format = [record for record in inside if record["format"] == format_name]
            points = [{"kl": kl_of(r, noise), "nbytes": r["nbytes"]} for r in of_format]
            ahead.append([of_format[at] for at in front(points)])
        # The first of every format, then the second of every format: a time limit leaves no format out.
        return [record for each in itertools.zip_longest(*ahead) for record in each if record is not None]

    def _accelerate(self, made: Record) -> Record:
        """Measure an artifact on the runtimes that run it, with all cores and with one; keep the fastest."""
        known = self.run.known("accelerate", made["name"])
        if known is not None or not self.settings.speed:
            return known or {}
        artifact = edgekit.open(self.run.artifact(made["stage"], made["file"]))
        tried = [_measured(artifact, *setting) for setting in self._settings(artifact)]
        best = max(tried, key=lambda each: float(each["speed"] or 0))
        return self.run.keep("accelerate", made["name"], {**best, "tried": tried})

    def _settings(self, artifact: Artifact) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield runtimes with options: every one that was asked for, or the fastest of the format."""
        from edgekit.runtime import choose_runtime

        asked = self.settings.runtimes
        running = [r for r in manager().all("runtimes") if _runs(r.options.get("formats", ()), artifact.format)]
        names = [r.name for r in running if r.name in asked] if asked else [choose_runtime(artifact, None).name]
        if not names:
            raise UsageError(
                f"runtimes {', '.join(asked)} run no {artifact.format} artifact; name {running[0].name} too, or leave "
                "the format out"
            )
        for name in names:
            yield name, {}
            if name not in _UNHURRIED and (os.cpu_count() or 1) > 1 and _takes_threads(name):
                yield name, {"threads": 1}  # small models lose more by waiting for threads than they gain

    def _validate(self, made: Record) -> Record:
        """Pass an artifact through the gates."""
        known = self.run.known("validate", made["name"])
        if known is not None or not self.settings.gates:
            return known or {}
        path = self.run.artifact("quantize", made["file"])
        return self.run.keep("validate", made["name"], gated(path, self._shared, self.texts, self.settings))


#: Why an artifact is not gated that another of its format beats in quality and size.
_OFF_FRONT = "another artifact of its format is at least as good and as small"


def _step_of(what: Candidate | Mapping[str, Any], stage: str = "quantize") -> Step:
    """Return a step for a candidate, or for an artifact by its record."""
    if isinstance(what, Candidate):
        return Step(stage, what.format, what.method if stage == "quantize" else "none", what.nbytes or 0)
    return Step(stage, what["format"], nbytes=what["nbytes"])


def kl_of(record: Mapping[str, Any], noise: float) -> float:
    """Return the KL divergence of a record, no less than the noise floor, below which values are rounding."""
    return max(float(record["quality"]["kl"]), noise)


def gated(path: Path, shared: Shared, texts: Texts, settings: Settings) -> Record:
    """Return what the gates say of an artifact: ``passed``, and ``gates``, the results as plain data.

    Quality is judged on the windows that measure; without `Settings.speed` performance is not judged.
    """
    policy = Policy() if settings.policy is None else read_policy(settings.policy)
    if not settings.speed:
        skip: Any = [*policy.skip, "performance"]
        policy = attrs.evolve(policy, skip=skip)
    tokenizer = shared.source.tokenizer
    assert tokenizer is not None
    text = {name: tokenizer.decode(windows.reshape(-1).tolist()) for name, windows in texts.measuring.items()}
    certificate = gate(path, shared.source, policy=policy, text=text, shared=shared)
    return {"passed": certificate.passed, "gates": [result.to_dict() for result in certificate]}


def _measured(artifact: Artifact, runtime: str, options: dict[str, Any]) -> Record:
    from edgekit_workflow.bench import measure

    room = artifact.model.config.context
    tokens = max(2, min(32, room // 2))
    measured = measure(
        artifact,
        runtime,
        prompt_tokens=min(16, room - tokens),
        tokens=tokens,
        repeats=3,
        options=options,
        rounds=_ROUNDS,
        settled=_SETTLED,
    )
    return {
        "runtime": runtime,
        "options": options,
        "speed": measured.tokens_per_second.mean if measured.tokens_per_second else None,
        "interval": attrs.asdict(measured.tokens_per_second) if measured.tokens_per_second else None,
        "first_token": attrs.asdict(measured.first_token),
        "latency": {"p50": measured.p50, "p95": measured.p95, "p99": measured.p99},
        "latencies": [round(each, 7) for repeat in measured.latencies for each in repeat],
        "memory": measured.peak_memory,
        "memory_before": measured.before,
        "load_seconds": measured.load_seconds,
        "joules_per_token": measured.joules_per_token,
        "rounds": measured.rounds,
        "others": measured.others,
    }


def _runs(formats: tuple[str, ...], name: str) -> bool:
    return "*" in formats or name in formats


def _takes_threads(runtime: str) -> bool:
    from edgekit.runtime.arguments import declared_options

    known = declared_options(manager().load("runtimes", runtime))
    return known is None or "threads" in known


def _precisions(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Return precision and bytes of each tensor, by its canonical name."""
    tensors = artifact.model.tensors
    return {name: {"precision": precision_name(t), "nbytes": t.nbytes, "size": t.size} for name, t in tensors.items()}


def _fallbacks(tensors: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the tensors that could not have the precision asked for, with the reason."""
    return {name: t["reason"] for name, t in tensors.items() if "no multiple of" in t.get("reason", "")}


def _digest(file: Path) -> str | None:
    try:
        return sha256(file)
    except OSError:
        return None


__all__ = ["Record", "Stages", "digests_of", "gated", "kl_of", "versions"]
