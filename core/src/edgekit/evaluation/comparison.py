"""Comparison of two artifacts: their sizes, and the errors of their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError, counted
from edgekit.evaluation._common import Source, finite
from edgekit.evaluation.language import Baseline, Evaluation, Text, evaluate
from edgekit.files import _html
from edgekit.files.memory import enough_memory
from edgekit.pipeline._conversion import as_artifact
from edgekit.pipeline._progress import Progress, Shown, reporting
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.tensor import precision_name as precision_name

#: Elements of a tensor compared at once.
_CHUNK = 1 << 21


@attrs.frozen
class TensorError:
    """The error of a tensor against the baseline's.

    Attributes:
        name: canonical, or as in the files if the family is unsupported.
        precision: the compared tensor's.
        relative_rms: sqrt of the squared errors' sum over the squared values' sum.
        max_abs: largest absolute error.
        snr_db: signal-to-noise ratio in dB; infinite if all values are equal.
        share: of the squared error of all tensors together, 0 to 1: where a better precision would help most.
    """

    name: str
    precision: str
    relative_rms: float
    max_abs: float
    snr_db: float
    share: float = 0.0


@attrs.frozen
class Size:
    """The size of an artifact.

    Attributes:
        name: of the file or directory.
        format: of the artifact.
        nbytes: on disk, all files.
        tensor_nbytes: of the tensors alone.
        parameters: elements in all tensors.
    """

    name: str
    format: str
    nbytes: int
    tensor_nbytes: int
    parameters: int

    @classmethod
    def of(cls, artifact: Artifact) -> Size:
        """Return the size of an artifact."""
        return cls(artifact.path.name, artifact.format, artifact.nbytes, artifact.tensor_nbytes, artifact.parameters)

    @property
    def bits_per_weight(self) -> float:
        """Average over all tensors, scales included."""
        return 8 * self.tensor_nbytes / max(1, self.parameters)


@attrs.frozen(repr=False)
class Comparison:
    """Two artifacts of one model, side by side. ``print`` shows it as a table.

    Attributes:
        baseline, artifact: sizes of the two artifacts.
        tensors: error of each tensor, in the order of the model.
        relative_rms: over all these tensors together.
        unmatched: tensors that only one of the two has.
        evaluation: on a text, if one was given.
    """

    baseline: Size
    artifact: Size
    tensors: tuple[TensorError, ...] = attrs.field(repr=False)
    relative_rms: float
    unmatched: tuple[str, ...] = ()
    evaluation: Evaluation | None = None

    def by_error(self, top: int | None = None) -> Comparison:
        """Return the comparison with the tensors sorted by their share of the squared error, largest first.

        Args:
            top: keep only so many; None keeps all. Figures over all tensors do not change.

        Raises:
            UsageError: `top` is less than 1.
        """
        if top is not None and top < 1:
            raise UsageError(f"top {top}; choose 1 or more")
        return attrs.evolve(self, tensors=tuple(sorted(self.tensors, key=_least_wrong)[:top]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; values that are not finite become None."""
        return {
            "baseline": _size_dict(self.baseline),
            "artifact": _size_dict(self.artifact),
            "relative_rms": finite(self.relative_rms),
            "tensors": [{k: finite(v) for k, v in attrs.asdict(error).items()} for error in self.tensors],
            "unmatched": list(self.unmatched),
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join(_report(self))

    def __repr__(self) -> str:
        names = f"{self.baseline.name!r}, {self.artifact.name!r}"
        tensors = counted(len(self.tensors), "tensor")
        return f"Comparison({names}, {_saved(self)}, relative_rms={self.relative_rms:.6f}, {tensors})"

    def _repr_html_(self) -> str:
        header = ("tensor", "precision", "relative RMS", "max error", "SNR dB", "share")
        rows = (
            (e.name, e.precision, f"{e.relative_rms:.6f}", f"{e.max_abs:.3g}", f"{e.snr_db:.2f}", f"{e.share:.1%}")
            for e in self.tensors
        )
        first, *_ = (line for line in _report(self) if "relative error" in line)
        notes = [f"{size.name}: {size.nbytes:,} bytes" for size in (self.baseline, self.artifact)]
        notes += str(self.evaluation).splitlines() if self.evaluation is not None else []
        return _html.table(f"{self.artifact.name} against {self.baseline.name}: {first}", header, rows, notes)


@enough_memory("comparing two models")
def compare(
    baseline: Source | Baseline,
    artifact: Source,
    text: Text | None = None,
    *,
    context: int | None = None,
    progress: Shown = None,
) -> Comparison:
    """Compare two artifacts: size, error of every tensor and, with a text, perplexity and KL divergence.

    Args:
        baseline: the one to compare with, usually the one that was quantized; a `Baseline` where many artifacts
            are compared with one.
        artifact: the one to evaluate. Tensors are matched by their canonical names, so that the formats may
            differ; by the names in the files if the family of either is unsupported.
        text: as in `evaluate`.
        context: as in `evaluate`.
        progress: called before each tensor, then as in `evaluate`; True draws a bar on stderr.

    Raises:
        UsageError: the two have no tensor in common, or one of different shapes; and as `evaluate`.
    """
    base = baseline.artifact if isinstance(baseline, Baseline) else as_artifact(baseline)
    judged = as_artifact(artifact)
    pairs, unmatched = match(base, judged)
    evaluation = None
    with reporting(progress, "compare") as report:
        sums = [_difference(*pair, index, len(pairs), report) for index, pair in enumerate(pairs.values())]
        if text is not None:
            evaluation = evaluate(judged, text, baseline=baseline, context=context, progress=report)
    error, signal = (math.fsum(s[i] for s in sums) for i in (0, 1))
    errors = tuple(_tensor_error(name, pairs[name][1], s, error) for name, s in zip(pairs, sums, strict=True))
    return Comparison(Size.of(base), Size.of(judged), errors, _ratio(error, signal), unmatched, evaluation)


def match(baseline: Artifact, artifact: Artifact) -> tuple[dict[str, tuple[AnyTensor, AnyTensor]], tuple[str, ...]]:
    """Return pairs of the two artifacts' floating-point tensors by name, and the names that only one has.

    Raises:
        UsageError: no tensor in common, or shapes that differ.
    """
    base, judged = _known_tensors(baseline), _known_tensors(artifact)
    if base is None or judged is None:
        base, judged = baseline.tensors, artifact.tensors
    pairs = {name: (base[name], judged[name]) for name in base if name in judged and _is_float(base[name])}
    if not pairs:
        raise UsageError(f"{baseline.path} and {artifact.path} have no tensor in common; compare copies of one model")
    for name, (a, b) in pairs.items():
        if a.shape != b.shape:
            raise UsageError(
                f"tensor {name} has shape {list(a.shape)} in {baseline.path} and {list(b.shape)} in "
                f"{artifact.path}; compare copies of one model"
            )
    return pairs, tuple(sorted(set(base) ^ set(judged)))


def _known_tensors(artifact: Artifact) -> Mapping[str, AnyTensor] | None:
    try:
        return artifact.model.tensors
    except UnsupportedModelError:
        return None


def _is_float(tensor: AnyTensor) -> bool:
    return isinstance(tensor, EncodedTensor) or "float" in tensor.dtype


def _difference(
    base: AnyTensor, judged: AnyTensor, index: int, count: int, progress: Progress | None
) -> tuple[float, float, float]:
    """Return the sums of squared errors and squared values, and the largest absolute error, in chunks of rows."""
    if progress:
        progress(index, count, judged.name)
    step = max(1, _CHUNK * base.rows // max(1, base.size))
    sums = [_rows_difference(base, judged, i, min(i + step, base.rows)) for i in range(0, base.rows, step)]
    error, signal, largest = zip((0.0, 0.0, 0.0), *sums, strict=True)
    return math.fsum(error), math.fsum(signal), float(np.max(largest))


def _rows_difference(base: AnyTensor, judged: AnyTensor, start: int, stop: int) -> tuple[float, float, float]:
    values = base.float32(start, stop).astype(np.float64)
    error = values - judged.float32(start, stop)
    return float(np.vdot(error, error)), float(np.vdot(values, values)), float(np.abs(error).max(initial=0.0))


def _tensor_error(name: str, tensor: AnyTensor, sums: tuple[float, float, float], whole: float) -> TensorError:
    error, signal, largest = sums
    rms = _ratio(error, signal)
    decibel = -20 * math.log10(rms) if rms else math.inf
    share = error / whole if whole and math.isfinite(whole) else 0.0
    return TensorError(name, precision_name(tensor), rms, largest, decibel, share)


def _least_wrong(error: TensorError) -> tuple[float, float]:
    """Return a sort key: the largest share first, then the largest relative error."""
    return -error.share, -error.relative_rms


def _ratio(error: float, signal: float) -> float:
    """Return the relative RMS; infinite if only zeros were expected and other values came."""
    if error == 0:
        return 0.0
    return math.sqrt(error / signal) if signal else math.inf


def _size_dict(size: Size) -> dict[str, Any]:
    return attrs.asdict(size) | {"bits_per_weight": size.bits_per_weight}


def _report(comparison: Comparison) -> Iterator[str]:
    yield f"{'':10}{'bytes':>15}{'bits a weight':>15}  artifact"
    for label, size in (("baseline", comparison.baseline), ("compared", comparison.artifact)):
        yield f"{label:10}{size.nbytes:>15,}{size.bits_per_weight:>15.3f}  {size.name} ({size.format})"
    yield f"{_saved(comparison)}; relative error {comparison.relative_rms:.6f}"
    yield ""
    yield from _table(comparison.tensors)
    if comparison.unmatched:
        yield f"only in one of the two: {', '.join(comparison.unmatched)}"
    if comparison.evaluation is not None:
        yield ""
        yield str(comparison.evaluation)


def _saved(comparison: Comparison) -> str:
    saved = 1 - comparison.artifact.nbytes / max(1, comparison.baseline.nbytes)
    return f"{abs(saved):.1%} {'smaller' if saved >= 0 else 'larger'}"


def _table(errors: tuple[TensorError, ...]) -> Iterator[str]:
    names = max(len("tensor"), *(len(error.name) for error in errors))
    kinds = max(len("precision"), *(len(error.precision) for error in errors))
    head = f"{'relative RMS':>12}  {'max error':>10}  {'SNR dB':>7}  {'share':>6}"
    yield f"{'tensor':{names}}  {'precision':{kinds}}  {head}"
    for e in errors:
        row = f"{e.relative_rms:12.6f}  {e.max_abs:10.3g}  {e.snr_db:7.2f}  {e.share:6.1%}"
        yield f"{e.name:{names}}  {e.precision:{kinds}}  {row}"


__all__ = ["Comparison", "Size", "TensorError", "compare", "match"]
