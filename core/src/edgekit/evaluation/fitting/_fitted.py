"""`fit`: chooses the precision of every tensor for the least divergence at a given size of the artifact."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.evaluation._common import finite
from edgekit.evaluation.fitting._budget import Budget, refuse_out_of_reach
from edgekit.evaluation.fitting._elsewhere import Elsewhere
from edgekit.evaluation.fitting._encodings import Coding, Encodings
from edgekit.evaluation.fitting._marginals import Bench
from edgekit.evaluation.fitting._measuring import Divergence, Judge
from edgekit.evaluation.fitting._pooling import pooled
from edgekit.evaluation.fitting._problem import Problem
from edgekit.evaluation.fitting._record import Record
from edgekit.evaluation.fitting._search import Found, Precisions, search
from edgekit.evaluation.fitting._sensitivities import Sensitivity, head_of, table_of
from edgekit.evaluation.fitting._sensitivities import measure as measured
from edgekit.evaluation.fitting._texts import Split, split
from edgekit.evaluation.language import Text
from edgekit.files._problems import writing
from edgekit.files.atomic import write_atomic
from edgekit.files.guard import refuse_harm
from edgekit.files.memory import enough_memory
from edgekit.pipeline._conversion import Opened, Rounding, as_artifact, find_format, quantize
from edgekit.pipeline._progress import Progress, Shown, reporting
from edgekit.pipeline._recipes import AnyRecipe, recipe_toml
from edgekit.pipeline.rounding import Calibration
from edgekit.precision import Precision
from edgekit.recipe import Rules

FORMAT = "edgekit.fit"
#: Which precisions of a tensor are measured; and the weights up to which all are, unless it is said.
Measure = Literal["every", "one"]
EVERY = 50_000_000
_MARK = "# Chosen by edgekit fit; its text has the SHA-256 "


@attrs.frozen(repr=False)
class Fitted:
    """The result of `fit`.

    Attributes:
        artifact: the written model, opened.
        recipe: the file of its recipe (TOML).
        budget: the allowed size in bytes.
        nbytes: the size of the artifact in bytes, without the manifest.
        precisions: the precision of each weight matrix, by canonical name.
        chosen: divergence on the part of the text that the choice was made with.
        divergence: divergence on the part of the text that was used neither to calibrate nor to choose.
        noise_floor: KL divergence of the source from itself, summed in another order, in nats.
        positions: number of positions over which `divergence` is the mean.
        sensitivity: the divergence of each tensor in each precision alone.
        calibration: the calibration that the artifact was quantized with.
    """

    artifact: Artifact
    recipe: Path
    budget: int
    nbytes: int
    precisions: Precisions = attrs.field(repr=False)
    chosen: Divergence
    divergence: Divergence
    noise_floor: float
    positions: int
    sensitivity: Sensitivity
    calibration: Calibration

    def __repr__(self) -> str:
        return f"Fitted({str(self.artifact.path)!r}, {self.nbytes:,} of {self.budget:,} bytes, {self.divergence})"

    def __str__(self) -> str:
        counts = Counter(precision.name for precision in self.precisions.values())
        mixture = ", ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
        measured = self.divergence
        return (
            f"{self.artifact.path}  {self.nbytes:,} of {self.budget:,} bytes\n"
            f"{mixture}\n"
            f"KL divergence {measured.kl:.6f} ± {measured.error:.6f} over {self.positions} positions that it was not "
            f"chosen by ({self.chosen.kl:.6f} on those that it was); noise floor {self.noise_floor:.1e}\n"
            f"recipe: {self.recipe}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; values that are not finite become None."""
        return {
            "path": str(self.artifact.path),
            "recipe": str(self.recipe),
            "budget": self.budget,
            "size": self.nbytes,
            "precisions": {role: precision.name for role, precision in self.precisions.items()},
            "kl_divergence": finite(self.divergence.kl),
            "kl_error": finite(self.divergence.error),
            "chosen_kl_divergence": finite(self.chosen.kl),
            "noise_floor": self.noise_floor,
            "positions": self.positions,
        }


@enough_memory("fitting a model to a size")
def fit(
    source: Artifact | str | os.PathLike[str],
    text: Text | None = None,
    *,
    to: str | os.PathLike[str],
    size: str | int | None = None,
    bits: float | None = None,
    like: AnyRecipe | None = None,
    format: str | None = None,
    allow: Sequence[str | Precision] | None = None,
    calibration: Calibration | None = None,
    rounding: Rounding = "feedback",
    context: int | None = None,
    backend: str | None = None,
    work: str | os.PathLike[str] | None = None,
    measure: Measure | None = None,
    executor: Executor | None = None,
    progress: Shown = None,
    overwrite: bool = False,
) -> Fitted:
    """Choose the precision of every tensor for the least divergence at a given size, and write the artifact.

    The divergence of each tensor in each precision is measured (`edgekit.sensitivity`), the choice with the least sum
    within the size is computed exactly, and then improved by measuring the divergence of the whole model. The artifact
    is at most 0.5 % smaller than the budget if any choice is; its manifest does not count.

    The text is split: the first part is used to calibrate, a quarter to choose, and the last eighth to measure the
    result.

    Args:
        source: the model before quantization, or its path.
        text: a text typical of the model's use, or token ids [n], preferably ten thousand tokens. If a calibration is
            given, the text is not used to calibrate; None then takes the calibration's held-out windows.
        to: the file or directory to write.
        size: the size of the artifact: bytes, or a text such as ``"3.5GB"``.
        bits: average bits per weight, instead of a size.
        like: a recipe whose artifact has the wanted size, instead of a size.
        format: name of the format; None derives it from the suffix.
        allow: the precisions to choose from; None takes those that the format suggests.
        calibration: a result of `edgekit.calibrate`; None calibrates on the first part of the text.
        rounding: ``"feedback"`` or ``"nearest"``, as for `edgekit.quantize`.
        context: number of tokens in a window; None takes 512, or the model's context if that is smaller.
        backend: name of the encoders to use; None takes the fastest exact ones.
        work: a directory for the calibration, the measured values and the recipe; None takes ``<to>.fit``. Runs with
            other sizes reuse these files, and an interrupted run resumes after the last measured value.
        measure: ``"every"`` precision of each tensor, and the changes of the choice; or ``"one"`` precision of each
            tensor, on a quarter of the tokens, from which the others are predicted by their rounding losses. None
            takes ``"every"`` for models of at most 50 million weights.
        executor: calibrates, measures and encodes, as for `edgekit.calibrate`, `edgekit.sensitivity` and
            `edgekit.quantize`; the model has to be given by its path, and workers have to see it and `work`.
        progress: called before each measurement; True draws a bar on stderr.
        overwrite: replace files that edgekit did not write.

    Raises:
        UsageError: no artifact meets the budget (the message gives the smallest or the largest size), the format cannot
            store a precision, the text is too short or is the calibration's own, or a target must not be replaced; or
            an executor and an opened artifact, or a calibration in memory.
        PluginError, MissingFileError, ChangedSourceError: a worker has other versions or sees other files.
        UnsupportedModelError: the family is not supported.
        NonFiniteError: the model computes a NaN or an infinity.
        ResourceError: a target cannot be written, or the executor lost its workers.
        LockedError: another process writes a target.

    Example:
        >>> fitted = edgekit.fit("model-F16.gguf", text, to="model-3.5GB.gguf", size="3.5GB")  # doctest: +SKIP
    """
    target, artifact = Path(to), as_artifact(source)
    place = Path(f"{target}.fit") if work is None else Path(work)
    refuse_harm(target, artifact.reads)
    refuse_harm(place, artifact.reads)
    coding = Coding(rounding, backend)
    problem = Problem.of(artifact, find_format(format, target), allow)
    budget = Budget.of(problem, size, bits, like)
    refuse_out_of_reach(problem, budget)
    near = None if _every(problem, measure) else _bits(problem, budget)
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    given = artifact if isinstance(source, Artifact) else Opened(artifact)
    parts = split(
        given,
        text,
        calibration,
        context=context,
        file=place / "calibration.safetensors",
        executor=executor,
        progress=progress,
    )
    fewer = parts if near is None else attrs.evolve(parts, choosing=parts.choosing[: max(1, len(parts.choosing) // 4)])
    elsewhere = Elsewhere.of(executor, given, problem, fewer, coding)
    with reporting(progress, "sensitivity") as report:
        file = place / f"sensitivity-{problem.format}.json"
        alone = measured(
            problem, fewer, coding, file=file, near=near, elsewhere=elsewhere, progress=report, overwrite=True
        )
    if near is not None:
        elsewhere = Elsewhere.of(executor, given, problem, parts, coding)
    search_file = place / f"{target.name}.search.json"
    with reporting(progress, "fit") as report:
        best = _searched(problem, parts, budget, alone, like, coding, search_file, near is None, elsewhere, report)
    recipe = place / f"{target.name}.toml"
    write_recipe(recipe, problem.recipe(best.choice, f"fit {budget.asked}"), overwrite)
    written = quantize(
        given,
        recipe,
        to=target,
        format=format,
        calibration=parts.calibration,
        rounding=rounding,
        backend=backend,
        allow_unquantized=True,
        executor=executor,
        progress=progress,
        overwrite=overwrite,
    )
    judge = Judge.on(artifact.model, parts.reporting)
    return Fitted(
        artifact=written,
        recipe=recipe,
        budget=budget.most,
        nbytes=written.nbytes,
        precisions=best.choice,
        chosen=best.divergence,
        divergence=judge.divergence(written.model),
        noise_floor=alone.noise_floor,
        positions=judge.scored,
        sensitivity=alone,
        calibration=parts.calibration,
    )


def _every(problem: Problem, measure: Measure | None) -> bool:
    """Whether every precision of each tensor is measured."""
    if measure not in (None, "every", "one"):
        raise UsageError(f"measure={measure!r}; 'every' precision of each tensor, 'one', or None are possible")
    return _weights(problem) <= EVERY if measure is None else measure == "every"


def _bits(problem: Problem, budget: Budget) -> int:
    """Bits per weight of the units on average if the artifact is as large as the budget.

    Whole ones, so that other budgets near it need not be measured anew.
    """
    besides = problem.nbytes(problem.smallest) - problem.units_nbytes(problem.smallest)
    return round(8 * (budget.most - besides) / _weights(problem))


def _weights(problem: Problem) -> int:
    return sum(math.prod(slot.shape) for unit in problem.units for slot in unit.slots)


def _searched(
    problem: Problem,
    parts: Split,
    budget: Budget,
    alone: Sensitivity,
    like: AnyRecipe | None,
    coding: Coding,
    file: Path,
    every: bool,
    elsewhere: Elsewhere | None,
    progress: Progress | None,
) -> Found:
    """Return the best choice, reusing values that an earlier run recorded in `file`.

    If not `every` precision was measured alone, neither are the changes of the choice, and nothing is pooled: the
    noise of a tensor's one measurement is the same in all its precisions.
    """
    assert problem.layout.model is not None
    head = {**head_of(problem, parts, FORMAT, coding), "budget": budget.most, "asked": budget.asked, "every": every}
    judge = Judge.on(problem.layout.model, parts.choosing, decoded=elsewhere is None)
    others = _others(problem, budget, like)
    with closing(Record(file, head, overwrite=True)) as record:
        encodings = Encodings(problem.layout.model, parts.calibration, coding)
        bench = Bench(judge, encodings, record, progress, elsewhere)
        table = pooled(table_of(alone), alone.noise_floor) if every else table_of(alone)
        best = search(bench, problem, budget, table, others, None if every else 0)
        precisions = {role: precision.name for role, precision in best.choice.items()}
        record.finish({"kl": finite(best.divergence.kl), "precisions": precisions})
    return best


def _others(problem: Problem, budget: Budget, like: AnyRecipe | None) -> Iterator[Precisions]:
    """Yield further choices within the budget: one precision for all tensors, and the recipe `like`."""
    named = [] if like is None else [problem.of_recipe(like)[1]]
    for choice in (*problem.uniform(), *named):
        if choice is not None and budget.least <= problem.nbytes(choice) <= budget.most:
            yield choice


def write_recipe(path: Path, recipe: Rules, overwrite: bool) -> None:
    """Write a recipe's file; its first line is a hash of the rest, so that an edited file is not replaced.

    Raises:
        UsageError: the file exists and has been edited, or is not a recipe of `fit`.
        ResourceError: the file cannot be written.
        LockedError: another process writes it.
    """
    text = recipe_toml(recipe)
    with writing(path):
        there = path.read_text("utf-8") if path.exists() else None
    if there is not None and not overwrite and there != marked(there.partition("\n")[2]):
        raise UsageError(
            f"{path}: it is there already, and was edited or is no recipe of edgekit fit; move it away, or replace it "
            "with overwrite=True (--force)"
        )
    write_atomic(path, marked(text).encode())


def marked(text: str) -> str:
    """Return the text of a recipe, preceded by a line with its hash."""
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


__all__ = ["Fitted", "Measure", "fit", "write_recipe"]
