"""`sensitivity`: the divergence caused by each tensor in each precision, measured with only that tensor quantized."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import NonFiniteError
from edgekit.evaluation._common import finite
from edgekit.evaluation.fitting import _heatmap as heatmap
from edgekit.evaluation.fitting._elsewhere import Elsewhere
from edgekit.evaluation.fitting._encodings import Coding, Encodings
from edgekit.evaluation.fitting._marginals import Bench, Table
from edgekit.evaluation.fitting._measuring import Divergence, Judge
from edgekit.evaluation.fitting._predicted import predicted
from edgekit.evaluation.fitting._problem import Problem, Unit
from edgekit.evaluation.fitting._record import Record
from edgekit.evaluation.fitting._texts import Split, split
from edgekit.evaluation.language import Text
from edgekit.files.guard import refuse_harm
from edgekit.files.memory import enough_memory
from edgekit.pipeline import _remote
from edgekit.pipeline._conversion import Opened, Rounding, as_artifact, find_format
from edgekit.pipeline._progress import Progress, Shown, reporting
from edgekit.pipeline.rounding import Calibration
from edgekit.pipeline.rounding.calibration import text_digest
from edgekit.precision import Precision

FORMAT, VERSION = "edgekit.sensitivity", 1


@attrs.frozen
class Measured:
    """The measured divergence of one tensor in one precision.

    Attributes:
        tensor: its canonical name; several names joined by ``+`` if the format requires one precision for them.
        precision: name of the precision.
        nbytes: bytes of the tensor in this precision.
        kl: mean KL divergence of the model with this tensor quantized from the source, in nats.
        error: standard error of that mean, with the positions taken as independent.
        predicted: whether another precision of the tensor was measured, and this one follows from the rounding losses.
    """

    tensor: str
    precision: str
    nbytes: int
    kl: float
    error: float
    predicted: bool = False


@attrs.frozen(repr=False)
class Sensitivity:
    """The divergence of every tensor in every precision.

    Attributes:
        model: name of the source.
        format: name of the format whose precisions were measured.
        measured: one value per tensor and precision, in the order of the forward pass.
        noise_floor: KL divergence of the source from itself, summed in another order, in nats.
        positions: number of scored positions.
        context: number of tokens in a window.
        path: the JSON file; None if the values are in memory.
    """

    model: str
    format: str
    measured: tuple[Measured, ...] = attrs.field(repr=False)
    noise_floor: float
    positions: int
    context: int
    path: Path | None = None

    def __repr__(self) -> str:
        return f"Sensitivity({self.model!r}, {self.format}, {len(self.measured)} values, noise {self.noise_floor:.1e})"

    def of(self, tensor: str, precision: str) -> Measured:
        """Return the value of a tensor in a precision; raises `KeyError` if it was not measured."""
        for value in self.measured:
            if (value.tensor, value.precision) == (tensor, precision):
                return value
        raise KeyError(f"{tensor} in {precision} was not measured")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; values that are not finite become None."""
        plain = attrs.asdict(self, filter=lambda field, _: field.name not in ("measured", "path"))
        values = [{name: finite(value) for name, value in attrs.asdict(m).items()} for m in self.measured]
        return {**plain, "measured": values}

    def svg(self) -> str:
        """Return a heat map as SVG: a row per tensor, a column per precision, each divergence as colour and number."""
        cells = {(m.tensor, m.precision): m.kl for m in self.measured}
        return heatmap.draw(cells, self.noise_floor)

    def _repr_html_(self) -> str:
        return self.svg()


@enough_memory("measuring sensitivities")
def sensitivity(
    source: Artifact | str | os.PathLike[str],
    text: Text | None = None,
    *,
    format: str | None = None,
    allow: Sequence[str | Precision] | None = None,
    calibration: Calibration | None = None,
    rounding: Rounding = "feedback",
    context: int | None = None,
    backend: str | None = None,
    to: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: Shown = None,
    overwrite: bool = False,
) -> Sensitivity:
    """Measure the KL divergence caused by each weight matrix in each precision, with only that matrix quantized.

    The first part of the text is used to calibrate (the importance weights the errors); the divergence is measured on
    the last quarter, at most 4096 tokens. Layers before the changed one are computed once.

    Args:
        source: the model, best before quantization.
        text: a text typical of the model's use, or token ids [n]. If a calibration is given, the divergence is measured
            on all of the text; None then takes the calibration's held-out windows.
        format: name of the format whose precisions to measure; None takes the source's format.
        allow: the precisions; None takes those that the format suggests.
        calibration: a result of `edgekit.calibrate` on another text or another part of it; None calibrates on the
            first part of the text.
        rounding: ``"feedback"`` or ``"nearest"``, as for `edgekit.quantize`.
        context: number of tokens in a window; None takes 512, or the model's context if that is smaller.
        backend: name of the encoders to use; None takes the fastest exact ones.
        to: a JSON file in which each value is recorded when it is measured; an interrupted run resumes after them.
        executor: measures the matrices, and calibrates as in `edgekit.calibrate`; None does it here, and so do threads.
            The model has to be given by its path, which the workers open. They read the calibration too: it is written
            to ``<to>.calibration.safetensors``, without `to` to a temporary file, which only workers on this machine
            see. The bits do not depend on how many workers there are, but on their processors.
        progress: called before each value; True draws a bar on stderr.
        overwrite: replace a file at `to` that is not such a file.

    Raises:
        UsageError: the text is too short or is the calibration's own, the format or a tensor cannot have a precision,
            or the target must not be replaced; or an executor and an opened artifact, or a calibration in memory.
        PluginError, MissingFileError, ChangedSourceError: a worker has other versions or sees other files.
        UnsupportedModelError: the family is not supported.
        NonFiniteError: the model computes a NaN or an infinity.
        ResourceError: the target cannot be written, or the executor lost its workers.
        LockedError: another process writes the target.

    Example:
        >>> measured = edgekit.sensitivity("model-F16.gguf", text)  # doctest: +SKIP
        >>> Path("sensitivity.svg").write_text(measured.svg())  # doctest: +SKIP
    """
    artifact = as_artifact(source)
    target = None if to is None else Path(to)
    if target is not None:
        refuse_harm(target, artifact.reads)
    problem = Problem.of(artifact, find_format(format or artifact.format, Path()), allow)
    coding = Coding(rounding, backend)
    with ExitStack() as stack:
        file = None
        if _remote.elsewhere(executor) is not None:
            beside = str(target or Path(stack.enter_context(TemporaryDirectory()), "text"))
            file = Path(f"{beside}.calibration.safetensors")
        given = artifact if isinstance(source, Artifact) else Opened(artifact)
        parts = split(
            given, text, calibration, context=context, report=False, file=file, executor=executor, progress=progress
        )
        elsewhere = Elsewhere.of(executor, given, problem, parts, coding)
        report = stack.enter_context(reporting(progress, "sensitivity"))
        return measure(problem, parts, coding, file=target, elsewhere=elsewhere, progress=report, overwrite=overwrite)


def measure(
    problem: Problem,
    parts: Split,
    coding: Coding,
    *,
    file: Path | None = None,
    near: int | None = None,
    elsewhere: Elsewhere | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Sensitivity:
    """Return the sensitivity of a problem's units, measured on `parts.choosing`; arguments as for `sensitivity`.

    With `near`, bits per weight, one precision of each unit is measured, and the others are predicted.
    """
    assert problem.layout.model is not None
    judge = Judge.on(problem.layout.model, parts.choosing, decoded=elsewhere is None)
    head = head_of(problem, parts, FORMAT, coding) | ({} if near is None else {"near": near})
    with closing(Record(file, head, overwrite)) as record:
        encodings = Encodings(problem.layout.model, parts.calibration, coding)
        bench = Bench(judge, encodings, record, progress, elsewhere)
        noise = bench.noise_floor()
        if near is None:
            table = bench.each("alone", {}, [(unit, unit.options) for unit in problem.units])
        else:
            table = predicted(bench, problem.units, near)
        _refuse_nonfinite(problem.units, table)
        alone = {(entry["tensor"], entry["precision"]) for entry in record.entries if entry["step"] == "alone"}
        record.finish({"noise_floor": noise, "positions": judge.scored})
    name = problem.layout.source.path.name
    measured = tuple(_listed(problem.units, table, alone))
    return Sensitivity(name, problem.format, measured, noise, judge.scored, int(parts.choosing.shape[1]), file)


def head_of(problem: Problem, parts: Split, format_name: str, coding: Coding) -> dict[str, Any]:
    """Return everything that the measured values depend on, as the head of their record."""
    options = json.dumps([[unit.name, [p.name for p in unit.options]] for unit in problem.units])
    return {
        "format": format_name,
        "version": VERSION,
        "edgekit": version("edgekit-core"),
        "model": parts.calibration.model,
        "calibration": parts.calibration.digest,
        "text": text_digest(parts.choosing.reshape(-1)),
        "context": int(parts.choosing.shape[1]),
        "target": problem.format,
        "options": hashlib.sha256(options.encode()).hexdigest(),
        "rounding": coding.rounding,
        "backend": coding.backend or "",
    }


def costs_of(problem: Problem, table: Table) -> list[list[float]]:
    """Return the divergence of each option of each unit, in nats."""
    return [[table[unit.name, precision.name].kl for precision in unit.options] for unit in problem.units]


def table_of(measured: Sensitivity) -> Table:
    """Return the measured divergences by tensor and precision."""
    return {(m.tensor, m.precision): Divergence(m.kl, m.error) for m in measured.measured}


def _listed(
    units: Sequence[Unit], table: Mapping[tuple[str, str], Divergence], alone: Container[tuple[str, str]]
) -> Iterator[Measured]:
    """Yield the values of a table; those not in `alone` were predicted."""
    by_name = {unit.name: unit for unit in units}
    for (name, precision), found in table.items():
        nbytes = by_name[name].sizes[_number(by_name[name], precision)]
        yield Measured(name, precision, nbytes, found.kl, found.error, (name, precision) not in alone)


def _number(unit: Unit, precision: str) -> int:
    return next(number for number, option in enumerate(unit.options) if option.name == precision)


def _refuse_nonfinite(units: Sequence[Unit], table: Table) -> None:
    for unit in units:
        if not any(math.isfinite(table[unit.name, precision.name].kl) for precision in unit.options):
            raise NonFiniteError(
                f"with {unit.name} in any of the precisions the model computes values that are not finite; look for "
                "broken weights with `edgekit inspect`, or allow other precisions"
            )


__all__ = ["Measured", "Sensitivity", "costs_of", "head_of", "measure", "sensitivity", "table_of"]
