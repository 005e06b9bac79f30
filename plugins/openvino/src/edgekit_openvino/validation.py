"""Validation sets: samples, labels and a metric, for quantization with accuracy control."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.errors import MissingFileError, UsageError
from edgekit.evaluation import outputs as compared
from edgekit.evaluation.samples import Feed, Input, arrays_of, check
from edgekit.typing import Array
from edgekit_openvino.measure import outputs
from edgekit_openvino.models import as_openvino

Metric = Callable[[Array, Any], float]
"""Judges a model's first output by a label; the more, the better. The mean over the samples counts."""


def accuracy(output: Array, label: Any) -> float:
    """Return the share of labels that are equal to the index of the largest value in the last dimension."""
    return float(np.mean(output.argmax(-1) == np.asarray(label).reshape(output.shape[:-1])))


def cosine(output: Array, label: Any) -> float:
    """Return the cosine similarity of the output and the label."""
    return compared.cosine(np.asarray(output, np.float64).ravel(), np.asarray(label, np.float64).ravel())


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "cosine": cosine}
_BY_ITSELF = ("cosine",)


@attrs.frozen(eq=False)
class Validation:
    """A validation set: samples, labels and a metric.

    Attributes:
        feeds: the samples.
        labels: the label of each sample; None if the float model's output is the label.
        metric: the metric; see `Metric`.
        name: name of the metric.
    """

    feeds: Sequence[Feed]
    labels: Sequence[Any] | None
    metric: Metric
    name: str

    @classmethod
    def of(cls, given: Any, metric: str | Metric, inputs: Sequence[Input]) -> Validation:
        """Return the validation set of pairs (sample, label), or of an .npz file with an array ``labels``.

        Args:
            given: the pairs, or the file; for the metric ``cosine`` also samples without labels.
            metric: a function, ``accuracy`` or ``cosine``.
            inputs: the model's inputs.

        Raises:
            UsageError: there are no samples or no labels, the metric is unknown, or the model does not take a sample.
        """
        if isinstance(metric, str) and metric not in METRICS:
            raise UsageError(f"metric={metric}; choose one of {', '.join(METRICS)}, or give a function")
        chosen = METRICS[metric] if isinstance(metric, str) else metric
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        samples, labels = _from_file(Path(given)) if isinstance(given, str | os.PathLike) else _pairs(given, name)
        if labels is None and name not in _BY_ITSELF:
            raise UsageError(
                f"the validation set has no labels, which the metric {name} needs; give (sample, label) pairs"
            )
        return cls([check(s, inputs, n, "validation") for n, s in enumerate(samples)], labels, chosen, name)

    def labelled(self, model: Any) -> Validation:
        """Return the validation set with the outputs of a model as labels if it has none."""
        return self if self.labels is not None else attrs.evolve(self, labels=list(outputs(model, self.feeds)))

    def score(self, outputs: Iterable[Array]) -> list[float]:
        """Return the metric of each sample for a model's outputs in the order of the samples."""
        assert self.labels is not None
        return [self._judge(output, label) for output, label in zip(outputs, self.labels, strict=True)]

    def mean(self, model: Any) -> float:
        """Return the mean metric of an `openvino.Model`."""
        return float(np.mean(self.score(outputs(model, self.feeds))))

    def for_nncf(self) -> Callable[[Any, Iterable[tuple[Feed, Any]]], tuple[float, list[float]]]:
        """Return the validation function for NNCF, which calls it with a changed model and some pairs of `items`."""

        def validate(model: Any, pairs: Iterable[tuple[Feed, Any]]) -> tuple[float, list[float]]:
            feeds, labels = zip(*pairs, strict=True)
            scores = [self._judge(*pair) for pair in zip(_outputs_of(model, feeds), labels, strict=True)]
            return float(np.mean(scores)), scores

        return validate

    @property
    def items(self) -> list[tuple[Feed, Any]]:
        """The pairs of sample and label."""
        assert self.labels is not None
        return list(zip(self.feeds, self.labels, strict=True))

    def _judge(self, output: Array, label: Any) -> float:
        value = float(self.metric(output, label))
        if not np.isfinite(value):
            raise UsageError(
                f"the metric {self.name} gives {value}; it must return a finite number, the larger the better"
            )
        return value


def _outputs_of(model: Any, feeds: Iterable[Feed]) -> Iterable[Array]:
    """Return the first outputs of the model that NNCF passes: an `openvino.CompiledModel` or an `onnx.ModelProto`."""
    if callable(model):
        return (np.array(model(dict(feed))[0]) for feed in feeds)
    return outputs(as_openvino(model), feeds)


def _pairs(given: Any, name: str) -> tuple[list[Any], list[Any] | None]:
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise UsageError(f"a validation set of type {type(given).__name__}; give an iterable of (sample, label) pairs")
    items = list(given)
    if not items:
        raise UsageError(
            "the validation set is empty; give (sample, label) pairs that the calibration set does not have"
        )
    if all(isinstance(item, tuple) and len(item) == 2 for item in items):
        return [sample for sample, _ in items], [label for _, label in items]
    if name in _BY_ITSELF:
        return items, None
    raise UsageError(f"the metric {name} takes (sample, label) pairs; the validation set has {type(items[0]).__name__}")


def _from_file(path: Path) -> tuple[list[Any], list[Any] | None]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; validate with an .npz file")
    arrays = arrays_of(path)
    labels = arrays.pop("labels", None)
    counts = {len(array) if array.ndim else 0 for array in (*arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1 or counts == {0}:
        raise UsageError(
            f"{path}: its arrays count {sorted(counts)} samples; all must have the same count, at least one"
        )
    count = counts.pop()
    rows = [{name: array[number : number + 1] for name, array in arrays.items()} for number in range(count)]
    return rows, None if labels is None else list(labels)


__all__ = ["METRICS", "Metric", "Validation", "accuracy", "cosine"]
