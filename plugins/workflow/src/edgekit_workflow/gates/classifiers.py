"""Gates of quality of classifiers: any graph that scores classes, of text, images or sound, against its source.

edgekit reads no classifier's family: the graphs of both run as they are, on samples of their inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.evaluation.language import kl_divergence, log_softmax
from edgekit.runtime import load
from edgekit.typing import F64, I64, Array
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.subject import Subject

#: The gates of classifiers.
OF_CLASSIFIERS = ("label_agreement", "class_divergence", "accuracy_ratio")
#: Name of the array of true classes beside the inputs.
LABELS = "labels"
#: Samples of a run, where the graph takes any number.
_BATCH = 32
#: Least probability whose logarithm is taken.
_LEAST = 1e-12


@runtime_checkable
class Graph(Protocol):
    """A runtime that runs a graph by the names of its inputs."""

    @property
    def inputs(self) -> Mapping[str, tuple[str, tuple[int | None, ...]]]:
        """Element type and shape of each input by name, with None for a dimension of any size."""

    def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return every output by its name."""


@attrs.frozen
class Scores:
    """What two classifiers say of the same samples.

    Attributes:
        ours, theirs: logarithms of the probabilities of the classes, float64 [n, classes]; of artifact and source.
        labels: the true classes, int64 [n], or None.
    """

    ours: F64
    theirs: F64
    labels: I64 | None


def classifier_gates(subject: Subject, names: Sequence[str]) -> Iterator[GateResult]:
    """Yield the results of the gates of classifiers, measured on the subject's samples.

    Raises:
        UsageError: the samples do not fit the graphs, or one of them is no classifier.
    """
    scores, how = compared(subject), subject.policy.quality
    for name in names:
        limit = float(getattr(how, name))
        if name == "label_agreement":
            measured, detail = _agreement(scores)
            yield GateResult(name, "quality", measured >= limit, measured, limit, detail=detail)
        elif name == "class_divergence":
            measured = _divergence(scores)
            yield GateResult(name, "quality", measured <= limit, measured, limit, "nats")
        elif scores.labels is None:
            yield GateResult(name, "quality", None, detail=f"the samples have no array {LABELS!r}")
        else:
            measured, detail = _accuracy(scores.ours, scores.theirs, scores.labels)
            yield GateResult(name, "quality", measured >= limit, measured, limit, detail=detail)


def compared(subject: Subject) -> Scores:
    """Return the scores of the artifact and of the source on the subject's samples, at most the policy's number."""
    most = subject.policy.quality.samples
    samples = {name: array[:most] for name, array in (subject.samples or {}).items()}
    labels = samples.pop(LABELS, None)
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1 or counts == {0}:
        raise UsageError(f"samples of {sorted(counts)} rows; give one array for each input, all with the same number")
    ours = _classified(subject.artifact, subject.runtime, samples, counts.pop())
    theirs = _classified(subject.source, None, samples, len(ours))
    if ours.shape != theirs.shape:
        raise UsageError(
            f"{subject.artifact.path} scores {ours.shape[1]} classes, {subject.source.path} {theirs.shape[1]}; give "
            "the model that it was made from"
        )
    logarithms = _of_probabilities if _are_probabilities(theirs) and _are_probabilities(ours) else log_softmax
    ours, theirs = (np.asarray(logarithms(one), np.float64) for one in (ours, theirs))
    return Scores(ours, theirs, _checked(labels, ours.shape))


def _classified(artifact: Artifact, runtime: str | None, samples: Mapping[str, Array], count: int) -> Array:
    with load(artifact, runtime) as model:
        if not isinstance(model, Graph):
            raise UsageError(
                f"{artifact.path}: the runtime {model.name} runs no graph by its inputs; classifiers are judged as "
                "ONNX or OpenVINO IR"
            )
        free = all(shape and shape[0] is None for _, shape in model.inputs.values())
        size = _BATCH if free else 1
        parts = [
            _scores(model.infer({name: array[at : at + size] for name, array in samples.items()}), artifact)
            for at in range(0, count, size)
        ]
    return np.concatenate(parts)


def _scores(outputs: Mapping[str, Array], artifact: Artifact) -> Array:
    """The output that scores classes: ``logits``, or the first matrix of floats."""
    fitting = {name: each for name, each in outputs.items() if each.ndim == 2 and each.shape[1] > 1}
    fitting = {name: each for name, each in fitting.items() if each.dtype.kind == "f"}
    if not fitting:
        shapes = ", ".join(f"{name} {each.dtype} {list(each.shape)}" for name, each in outputs.items())
        raise UsageError(f"{artifact.path}: no output scores classes ([n, classes], floats); it has {shapes}")
    return fitting.get("logits", next(iter(fitting.values()))).astype(np.float64)


def _are_probabilities(scores: Array) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def _of_probabilities(scores: Array) -> Array:
    return np.log(np.maximum(scores, _LEAST))


def _checked(labels: Array | None, shape: tuple[int, ...]) -> I64 | None:
    if labels is None:
        return None
    fits = labels.shape == shape[:1] and labels.dtype.kind in "iu"
    if not fits or labels.min() < 0 or labels.max() >= shape[1]:
        raise UsageError(
            f"labels are {labels.dtype} {list(labels.shape)}; give a class from 0 to {shape[1] - 1} for each of the "
            f"{shape[0]} samples"
        )
    return labels.astype(np.int64)


def _agreement(scores: Scores) -> tuple[float, str]:
    """The share of samples of the same class, and the class that loses most where some do."""
    theirs = scores.theirs.argmax(axis=1)
    same = (scores.ours.argmax(axis=1) == theirs) & np.isfinite(scores.ours).all(axis=1)
    if same.all():
        return 1.0, ""
    shares = {int(each): float(same[theirs == each].mean()) for each in np.unique(theirs)}
    worst = min(shares, key=shares.__getitem__)
    return float(same.mean()), f"of class {worst} {shares[worst]:.0%}"


def _divergence(scores: Scores) -> float:
    if not np.isfinite(scores.ours).all():
        return float("inf")
    return float(kl_divergence(scores.theirs, scores.ours).mean())


def _accuracy(ours: F64, theirs: F64, labels: I64) -> tuple[float, str]:
    """The artifact's accuracy divided by the source's, and both."""
    hits, source = (float((each.argmax(axis=1) == labels).mean()) for each in (ours, theirs))
    ratio = hits / source if source else float(hits >= source)
    return ratio, f"accuracy {hits:.4g}, the source's {source:.4g}"


__all__ = ["LABELS", "OF_CLASSIFIERS", "Graph", "Scores", "classifier_gates", "compared"]
