"""Blame: whether an artifact's distance from its source comes from its weights or from the runtime, layer by layer.

The runtime's logits are compared with edgekit's own pass over the stored weights (the kernels' part), and that pass
with the source's (the weights' part). The weights' part of a layer is measured on the source's states: what the
artifact's layer makes of them, against what the source's does. A runtime gives no states, only logits; so the model is
cut after its first layers, written in the artifact's own format with the same codes, and run again: the first cut whose
logits differ from edgekit's pass over the same file has the fault in its last layer.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

import edgekit
from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.evaluation.language import kl_divergence, log_softmax
from edgekit.runtime import Runtime, choose_runtime, load
from edgekit.typing import F32
from edgekit_workflow.blame._cut import cut

#: Tokens that the layers are compared on.
TOKENS = 32
#: The difference that counts as a fault: so many times the runtime's own stated tolerance, and never less than the
#: second, in standard deviations of the logits.
TOLERANCES, LEAST = 5.0, 0.1
#: What a runtime's tolerance is if it states none (`edgekit.testing.runtimes`).
TOLERANCE = 1e-3
#: How much more than the median layer's a layer's error has to be to count as a fault.
STANDS_OUT = 3.0

#: Opens an artifact.
Start = Callable[[Artifact], Runtime]


@attrs.frozen
class Layer:
    """What one layer adds to the distance.

    Attributes:
        index: from 0; -1 for the embedding, and the number of layers for the last norm and the output matrix.
        weights: error of what the artifact's layer adds to the source's states, relative to what the source's adds; of
            the embedding and the output, of the states and of the logits themselves.
        kernels: root mean square difference of the runtime's logits from edgekit's pass, in standard deviations of the
            logits, of the model cut after this layer; None where nothing was cut.
    """

    index: int
    weights: float
    kernels: float | None = None


@attrs.frozen
class Blame:
    """Where an artifact's distance from its source comes from.

    Attributes:
        artifact, source: names of their files.
        runtime: its name.
        tokens: compared.
        total: mean KL divergence of the runtime's predictions from the source's, in nats.
        weights: of edgekit's pass over the artifact from the source's.
        kernels: of the runtime's from edgekit's pass over the artifact.
        layers: the embedding, each layer, the output.
        limit: difference of logits that counts as a fault of the runtime, in standard deviations.
    """

    artifact: str
    source: str
    runtime: str
    tokens: int
    total: float
    weights: float
    kernels: float
    layers: tuple[Layer, ...]
    limit: float

    @property
    def runtime_fault(self) -> int | None:
        """The first layer after which the runtime's logits differ; None without a fault.

        A fault of the embedding or of the output shows in layer 0 too, since every cut has both.
        """
        return next((one.index for one in self.layers if one.kernels is not None and self._beyond(one.kernels)), None)

    def _beyond(self, difference: float) -> bool:
        return not difference <= self.limit  # NaN is beyond every limit

    @property
    def weight_fault(self) -> int | None:
        """The layer whose weights stand out from the others'; None if none does."""
        inner = [one.weights for one in self.layers[1:-1]]
        usual = sorted(inner)[(len(inner) - 1) // 2]
        limit = STANDS_OUT * max(usual, 1e-6)
        worst = max(self.layers, key=lambda one: math.inf if math.isnan(one.weights) else one.weights)
        return None if worst.weights <= limit else worst.index

    @property
    def side(self) -> Literal["weights", "kernels", "both", "neither"]:
        """Where a fault lies."""
        faults = (self.weight_fault is not None, self.runtime_fault is not None)
        names: dict[tuple[bool, bool], Literal["weights", "kernels", "both", "neither"]] = {
            (True, False): "weights",
            (False, True): "kernels",
            (True, True): "both",
            (False, False): "neither",
        }
        return names[faults]

    def place(self, index: int) -> str:
        """Return a layer's name."""
        return "embedding" if index < 0 else "output" if index == len(self.layers) - 2 else f"layer {index}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        faults = {"side": self.side, "weight_fault": self.weight_fault, "runtime_fault": self.runtime_fault}
        return {**attrs.asdict(self), **faults}

    def __str__(self) -> str:
        lines = [
            f"{self.artifact} on {self.runtime} against {self.source}: KL divergence {self.total:.3g} nats over "
            f"{self.tokens} tokens: {self.weights:.3g} from the weights, {self.kernels:.3g} from the runtime",
            self._weights_said(),
            self._kernels_said(),
        ]
        return "\n".join(lines)

    def _weights_said(self) -> str:
        if self.weight_fault is None:
            return "weights: no layer stands out"
        worst = next(one for one in self.layers if one.index == self.weight_fault)
        return f"weights: {self.place(worst.index)} stands out, with an error of {worst.weights:.3g}"

    def _kernels_said(self) -> str:
        if self.runtime_fault is None:
            return f"runtime: no cut of the model differs by more than {self.limit:.3g} standard deviations"
        first = next(one for one in self.layers if one.index == self.runtime_fault)
        also = ", or the embedding or the output," if self.runtime_fault == 0 else ""
        return f"runtime: {self.place(first.index)}{also} computes otherwise: off by {first.kernels:.3g} deviations"


def blame(
    artifact: Artifact | str | os.PathLike[str],
    source: Artifact | str | os.PathLike[str],
    runtime: str | Start | None = None,
    *,
    tokens: Sequence[int] | None = None,
    limit: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Blame:
    """Split an artifact's distance from its source into the weights' part and the runtime's, layer by layer.

    Args:
        artifact: to explain, or its path.
        source: what it was made from, or its path.
        runtime: name of an installed one, or what opens an artifact; None takes the fastest.
        tokens: ids [n] to compare on; None takes `TOKENS` ids that are the same on every machine.
        limit: difference of logits that counts as a fault of the runtime, in standard deviations of the logits; None
            takes five times the tolerance that the runtime states.
        progress: called before each cut: how many are done, of how many, its name.

    Raises:
        UsageError: the two have other numbers of layers, or other vocabularies.
        UnsupportedModelError: the family is unsupported, predicts no tokens, or its layers cannot be computed alone.
    """
    ours, theirs = (a if isinstance(a, Artifact) else edgekit.open(a) for a in (artifact, source))
    stored, wanted = Transformer(ours.model), Transformer(theirs.model)
    _refuse_others(ours, theirs, stored, wanted)
    ids = np.asarray(_tokens(stored, tokens), np.int64)
    start, name, allowed = _start(ours, runtime)
    weights = list(_weight_errors(stored, wanted, ids))
    kernels: list[float | None] = [None]
    count = stored.config.layers
    for layer in range(count):
        if progress:
            progress(layer, count, f"cut after layer {layer}")
        kernels.append(_cut_difference(ours, layer + 1, start, ids))
    kernels.append(None)
    computed = _logits(start, ours, ids)
    p, q, r = (log_softmax(logits) for logits in (wanted.logits(ids), stored.logits(ids), computed))
    return Blame(
        artifact=ours.path.name,
        source=theirs.path.name,
        runtime=name,
        tokens=ids.size,
        total=_mean(p, r),
        weights=_mean(p, q),
        kernels=_mean(q, r),
        layers=tuple(Layer(n - 1, w, k) for n, (w, k) in enumerate(zip(weights, kernels, strict=True))),
        limit=limit if limit is not None else max(LEAST, TOLERANCES * allowed),
    )


def _mean(log_p: Any, log_q: Any) -> float:
    return float(kl_divergence(log_p, log_q).mean())


def _refuse_others(ours: Artifact, theirs: Artifact, stored: Transformer, wanted: Transformer) -> None:
    if not (stored.network.predicts and wanted.network.predicts and stored.network.alone):
        raise UnsupportedModelError(
            f"{ours.path}: a {stored.config.family} model's layers cannot be computed one by one, or it predicts no "
            "tokens; compare the tensors instead (`edgekit compare`)"
        )
    for name in ("layers", "vocab", "width"):
        one, other = getattr(stored.config, name), getattr(wanted.config, name)
        if one != other:
            raise UsageError(
                f"{ours.path} has {name} {one}, {theirs.path} {other}; give the model that the artifact was made from"
            )


def _tokens(model: Transformer, tokens: Sequence[int] | None) -> Sequence[int]:
    if tokens is not None:
        return tokens
    count = min(TOKENS, model.config.context)
    ids: list[int] = np.random.RandomState(7).randint(0, model.config.vocab, count).tolist()
    return ids


def _start(artifact: Artifact, runtime: str | Start | None) -> tuple[Start, str, float]:
    """Return what opens an artifact, its name, and its tolerance."""
    if callable(runtime):
        return runtime, getattr(runtime, "__name__", "runtime"), TOLERANCE
    chosen = choose_runtime(artifact, runtime)
    return (
        (lambda cut_one: load(cut_one, chosen.name)),
        chosen.name,
        float(chosen.options.get("tolerance") or TOLERANCE),
    )


def _weight_errors(stored: Transformer, wanted: Transformer, ids: Any) -> Iterator[float]:
    """Yield the error of the embedding, of each layer on the source's states, and of the output."""
    batch = ids[None]
    states = wanted.embedded(batch)
    yield _error(stored.embedded(batch), states)
    for layer in range(wanted.config.layers):
        after = wanted.layer(layer, states)
        yield _error(stored.layer(layer, states) - states, after - states)
        states = after
    ours, theirs = (model.project(model.normalized(states)) for model in (stored, wanted))
    yield _error(ours, theirs)


def _error(got: F32, expected: F32) -> float:
    """sqrt(Σ(got - expected)² / Σexpected²); NaN if a value is not finite."""
    values = expected.astype(np.float64)
    difference = got - values
    signal = float(np.vdot(values, values))
    return math.sqrt(float(np.vdot(difference, difference)) / signal) if signal else 0.0


def _cut_difference(artifact: Artifact, layers: int, start: Start, ids: Any) -> float:
    with tempfile.TemporaryDirectory(prefix="edgekit-blame-") as folder:
        part = cut(artifact, layers, Path(folder))
        computed, expected = _logits(start, part, ids), Transformer(part.model).logits(ids)
    return float(np.sqrt(np.mean(np.square(computed.astype(np.float64) - expected))) / expected.std())


def _logits(start: Start, artifact: Artifact, ids: Any) -> F32:
    with start(artifact) as model:
        return np.array(model.logits(ids))


__all__ = ["LEAST", "STANDS_OUT", "TOKENS", "TOLERANCE", "TOLERANCES", "Blame", "Layer", "blame"]
