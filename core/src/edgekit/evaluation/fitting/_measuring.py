"""The KL divergence of a model from the same one with other precisions, on windows of tokens.

A model is computed layer by layer. What is before the first layer that changes is the same for all changes of a layer,
so its states are computed once and kept; a change costs the layers behind it only.
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

#: Tokens that go through a layer at once.
_BATCH = 2048
#: Logits in memory at once: 32 MiB in float64.
_LOGITS = 1 << 22
_LAYER = re.compile(r"blk\.(\d+)\.")
_OUTPUT = "output.weight"


@attrs.frozen
class Divergence:
    """How far a model's predictions are from the source's.

    Attributes:
        kl: mean KL divergence over the scored positions, in nats; infinite for a model that computes no numbers.
        error: its standard error, the positions taken as independent.
    """

    kl: float
    error: float

    @classmethod
    def of(cls, values: F64) -> Divergence:
        """From the divergence at each position."""
        if not np.isfinite(values).all():
            return cls(math.inf, math.inf)
        return cls(float(values.mean()), float(values.std() / math.sqrt(values.size)))


def first_layer(role: str, layers: int) -> int:
    """The layer in which a tensor is used first; -1 for the embedding, `layers` for what follows them."""
    match = _LAYER.match(role)
    if match:
        return int(match[1])
    return layers if role == _OUTPUT else -1


@attrs.define(eq=False)
class Judge:
    """The source's predictions on the windows, and the distance of others from them.

    Attributes:
        source: the source's model; decoded in memory where it is small.
        windows: token ids [count, context]; the second half of each is scored, as `edgekit.evaluate` does.
    """

    source: Model
    windows: Ints
    _known: dict[int, F64] = attrs.field(factory=dict, init=False, repr=False)
    _hidden: F32 | None = attrs.field(default=None, init=False, repr=False)

    @classmethod
    def on(cls, model: Model, windows: Ints) -> Judge:
        """A judge of the model's variants."""
        return cls(in_memory(model), windows)

    @property
    def scored(self) -> int:
        """Number of positions that are scored."""
        count, context = self.windows.shape
        return int(count * (context - 1 - context // 2))

    def noise_floor(self) -> float:
        """As `edgekit.evaluation.Evaluation.noise_floor`, on the first batch of windows."""
        step = max(1, _BATCH // self.windows.shape[1])
        return noise_floor(Transformer(self.source), self.windows[:step])

    def divergence(self, model: Model, walk: Walk | None = None) -> Divergence:
        """How far a model is; arguments as for `values`."""
        return Divergence.of(self.values(model, walk))

    def values(self, model: Model, walk: Walk | None = None) -> F64:
        """The KL divergence at each scored position, in nats, [positions].

        Args:
            model: the source with other values of some tensors.
            walk: the states of such a model up to the first layer with a tensor that `model` has otherwise; None
                computes all of them.
        """
        walk = Walk.start(model, self.windows) if walk is None else walk.on(model)
        computing, states = Transformer(model), walk.finished()
        hidden = self._scored_states(computing, states)
        if self._hidden is None:
            source = Transformer(self.source)
            self._hidden = self._scored_states(source, Walk.start(self.source, self.windows).finished())
        step = max(1, _LOGITS // computing.config.vocab)
        found = []
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(hidden), step):
                log_q = log_softmax(computing.project(hidden[start : start + step]))
                found.append(kl_divergence(self._baseline(start, step), log_q))
        return np.concatenate(found)

    def _scored_states(self, computing: Transformer, states: F32) -> F32:
        first = self.windows.shape[1] // 2
        return computing.normalized(states[:, first:-1]).reshape(-1, computing.config.width)

    def _baseline(self, start: int, step: int) -> F64:
        """Log-probabilities of the source at some positions; kept where those of all positions take little."""
        if start in self._known:
            return self._known[start]
        assert self._hidden is not None
        log_p = log_softmax(Transformer(self.source).project(self._hidden[start : start + step]))
        if 8 * len(self._hidden) * log_p.shape[1] <= CACHE_LIMIT // 4:
            self._known[start] = log_p
        return log_p


@attrs.frozen(eq=False)
class Walk:
    """The states of a model's windows before one of its layers.

    Attributes:
        model: what computed them, and computes on.
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
        """Before the embedding."""
        return cls(model, -1, windows, np.zeros(0, np.float32))

    def on(self, model: Model) -> Walk:
        """The same states, to be continued with another model."""
        return attrs.evolve(self, model=model)

    def up_to(self, layer: int) -> Walk:
        """The states before a later layer, or before what follows the layers."""
        computing, states = Transformer(self.model), self.states
        for index in range(self.layer, layer):
            states = computing.embedded(self.windows) if index < 0 else _through(computing, index, states)
        return Walk(self.model, max(layer, self.layer), self.windows, states)

    def finished(self) -> F32:
        """The states after the last layer, float32 [count, context, width]."""
        return self.up_to(self.model.config.layers).states


def _through(computing: Transformer, layer: int, states: F32) -> F32:
    step = max(1, _BATCH // states.shape[1])
    parts = [computing.layer(layer, states[start : start + step]) for start in range(0, len(states), step)]
    return np.concatenate(parts)


def in_memory(model: Model) -> Model:
    """The model with its tensors decoded, where they take no more than `CACHE_LIMIT`; else as it is."""
    if 4 * sum(tensor.size for tensor in model.tensors.values()) > CACHE_LIMIT:
        return model
    return with_tensors(model, {name: decoded(name, tensor) for name, tensor in model.tensors.items()})


def decoded(name: str, tensor: AnyTensor) -> Tensor:
    """A tensor in float32 in memory."""
    return Tensor.of(name, tensor.float32().reshape(tensor.shape))


def with_tensors(model: Model, tensors: Mapping[str, AnyTensor]) -> Model:
    """The model with other values of some tensors."""
    return attrs.evolve(model, tensors={**model.tensors, **tensors})


__all__ = ["Divergence", "Judge", "Walk", "decoded", "first_layer", "in_memory", "with_tensors"]
