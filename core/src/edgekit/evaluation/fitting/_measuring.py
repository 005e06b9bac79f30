"""Measures the KL divergence of a model with other precisions from the source, on windows of tokens.

A model is computed layer by layer. The hidden states before the first changed layer are the same for all changes in
that layer, so they are computed once; each change then costs only the layers from there on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.architectures.forward import CACHE_LIMIT, Transformer
from edgekit.evaluation.language import kl_divergence, log_softmax, noise_floor
from edgekit.tensor import AnyTensor, Tensor
from edgekit.typing import F32, F64, Ints

#: Number of tokens that a layer computes at a time.
_BATCH = 2048
#: Number of logits in memory at a time: 32 MiB in float64.
_LOGITS = 1 << 22
_LAYER = re.compile(r"blk\.(\d+)\.")
_OUTPUT = "output.weight"


@attrs.frozen
class Divergence:
    """The KL divergence of a model's predictions from the source's.

    Attributes:
        kl: mean KL divergence over the scored positions, in nats; infinite if the model computes NaN or infinities.
        error: standard error of the mean, with the positions taken as independent.
    """

    kl: float
    error: float

    @classmethod
    def of(cls, values: F64) -> Divergence:
        """Return mean and standard error of the divergences [positions]."""
        if not np.isfinite(values).all():
            return cls(math.inf, math.inf)
        return cls(float(values.mean()), float(values.std() / math.sqrt(values.size)))


def first_layer(role: str, layers: int) -> int:
    """Return the first layer that uses a tensor; -1 for the embedding, `layers` for tensors after the last layer."""
    match = _LAYER.match(role)
    if match:
        return int(match[1])
    return layers if role == _OUTPUT else -1


@attrs.define(eq=False)
class Judge:
    """Measures the divergence of model variants from the source on fixed windows.

    Attributes:
        source: the source model; decoded in memory if it is small.
        windows: token ids [count, context]; the second half of each is scored, as in `edgekit.evaluate`.
    """

    source: Model
    windows: Ints
    _known: dict[int, F64] = attrs.field(factory=dict, init=False, repr=False)
    _hidden: F32 | None = attrs.field(default=None, init=False, repr=False)

    @classmethod
    def on(cls, model: Model, windows: Ints, *, decoded: bool = True) -> Judge:
        """Return a judge for variants of a model; `decoded` keeps a small one in memory."""
        return cls(in_memory(model) if decoded else model, windows)

    @property
    def scored(self) -> int:
        """The number of scored positions."""
        count, context = self.windows.shape
        return int(count * (context - 1 - context // 2))

    def noise_floor(self) -> float:
        """Return `edgekit.evaluation.Evaluation.noise_floor`, in nats, on the first batch of windows."""
        step = max(1, _BATCH // self.windows.shape[1])
        return noise_floor(Transformer(self.source), self.windows[:step])

    def divergence(self, model: Model, walk: Walk | None = None) -> Divergence:
        """Return mean and standard error of `values`; same arguments."""
        return Divergence.of(self.values(model, walk))

    def values(self, model: Model, walk: Walk | None = None) -> F64:
        """Return the KL divergence at each scored position, in nats, float64 [positions].

        Args:
            model: the source with other values of some tensors.
            walk: hidden states at a layer before which no tensor differs from `model`'s; None computes all layers.
        """
        walk = Walk.start(model, self.windows) if walk is None else walk.on(model)
        computing, states = Transformer(model), walk.finished()
        hidden = self._scored_states(computing, states)
        if self._hidden is None:
            source = Transformer(self.source)
            self._hidden = self._scored_states(source, Walk.start(self.source, self.windows).finished())
        step = max(1, _LOGITS // computing.config.vocab)
        parts = []
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(hidden), step):
                log_q = log_softmax(computing.project(hidden[start : start + step]))
                parts.append(kl_divergence(self._baseline(start, step), log_q))
        return np.concatenate(parts)

    def _scored_states(self, computing: Transformer, states: F32) -> F32:
        first = self.windows.shape[1] // 2
        return computing.normalized(states[:, first:-1]).reshape(-1, computing.config.width)

    def _baseline(self, start: int, step: int) -> F64:
        """Return the source's log-probabilities [step, vocab] from position `start`; cached if all positions fit."""
        if start in self._known:
            return self._known[start]
        assert self._hidden is not None
        log_p = log_softmax(Transformer(self.source).project(self._hidden[start : start + step]))
        if 8 * len(self._hidden) * log_p.shape[1] <= CACHE_LIMIT // 4:
            self._known[start] = log_p
        return log_p


@attrs.frozen(eq=False)
class Walk:
    """The hidden states of all windows before a layer of a model.

    Attributes:
        model: the model that computed the states and continues with them.
        layer: the next layer; -1 before the embedding.
        windows: token ids [count, context].
        states: float32 [count, context, width]; empty before the embedding.
    """

    model: Model
    layer: int
    windows: Ints = attrs.field(repr=False)
    states: F32 = attrs.field(repr=False)

    @classmethod
    def start(cls, model: Model, windows: Ints) -> Walk:
        """Return the walk before the embedding."""
        return cls(model, -1, windows, np.zeros(0, np.float32))

    def on(self, model: Model) -> Walk:
        """Return the same states, to be continued with another model."""
        return attrs.evolve(self, model=model)

    def up_to(self, layer: int) -> Walk:
        """Return the walk advanced to a later layer, or, for the number of layers, to the end of the last layer."""
        computing, states = Transformer(self.model), self.states
        for index in range(self.layer, layer):
            states = computing.embedded(self.windows) if index < 0 else _through(computing, index, states)
        return Walk(self.model, max(layer, self.layer), self.windows, states)

    def finished(self) -> F32:
        """Return the states after the last layer, float32 [count, context, width]."""
        return self.up_to(self.model.config.layers).states


def _through(computing: Transformer, layer: int, states: F32) -> F32:
    step = max(1, _BATCH // states.shape[1])
    parts = [computing.layer(layer, states[start : start + step]) for start in range(0, len(states), step)]
    return np.concatenate(parts)


def in_memory(model: Model) -> Model:
    """Return the model with its tensors decoded in memory if they take at most `CACHE_LIMIT` bytes, else unchanged."""
    if 4 * sum(tensor.size for tensor in model.tensors.values()) > CACHE_LIMIT:
        return model
    return with_tensors(model, {name: decoded(name, tensor) for name, tensor in model.tensors.items()})


def decoded(name: str, tensor: AnyTensor) -> Tensor:
    """Return a tensor decoded to float32 in memory."""
    return Tensor.of(name, tensor.float32().reshape(tensor.shape))


def with_tensors(model: Model, tensors: Mapping[str, AnyTensor]) -> Model:
    """Return the model with some tensors replaced."""
    return attrs.evolve(model, tensors={**model.tensors, **tensors})


__all__ = ["Divergence", "Judge", "Walk", "decoded", "first_layer", "in_memory", "with_tensors"]
