"""Tensors in other precisions, as the pipeline would write them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import attrs

from edgekit.architectures import Model
from edgekit.architectures.forward import CACHE_LIMIT
from edgekit.bridges import has_levels
from edgekit.encoding._importance import fill_importance
from edgekit.evaluation.fitting._measuring import decoded
from edgekit.pipeline._conversion import Rounding
from edgekit.pipeline._feedback import fastest
from edgekit.pipeline._stream import Encoder
from edgekit.pipeline.rounding import Calibration
from edgekit.pipeline.rounding._matrix import Metric, round_matrix
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Slot
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor
from edgekit.typing import Array


@attrs.frozen
class Coding:
    """How codes are chosen.

    Attributes:
        rounding: to nearest, or with error feedback.
        backend: of the encoders; None takes the fastest exact ones.
    """

    rounding: Rounding = "feedback"
    backend: str | None = None


#: Metrics that are kept: those of a layer.
_METRICS = 4


@attrs.define(eq=False)
class Encodings:
    """Encodes a model's tensors, and keeps what fits into memory.

    With feedback each matrix is rounded for the inputs that it has in the original. `edgekit.quantize` rounds it for
    those that the layers before it give as they are quantized, which depends on all of them and is better still.

    Attributes:
        model: what is encoded.
        calibration: its importance weighs the errors, its moments spread them.
        coding: how their codes are chosen.
        limit: bytes that are kept.
    """

    model: Model
    calibration: Calibration
    coding: Coding = Coding()
    limit: int = CACHE_LIMIT
    _kept: OrderedDict[tuple[str, str], AnyTensor] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _metrics: OrderedDict[str, Metric] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _importance: Mapping[str, Array] = attrs.field(init=False, repr=False)

    @_importance.default
    def _filled(self) -> Mapping[str, Array]:
        return fill_importance(self.calibration.importance()).importance

    def tensor(self, role: str, precision: Precision) -> AnyTensor:
        """A tensor with the values that it has in a precision.

        Raises:
            ScaleOverflowError, NonFiniteError: its values cannot be encoded so.
        """
        key = role, precision.name
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self._kept[key] = made = self._held(self._encoded(role, precision))
        while len(self._kept) > 1 and sum(tensor.nbytes for tensor in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)
        return made

    def tensors(self, choice: Mapping[str, Precision]) -> dict[str, AnyTensor]:
        """The tensors of a choice, by canonical name."""
        return {role: self.tensor(role, precision) for role, precision in choice.items()}

    def _encoded(self, role: str, precision: Precision) -> QuantizedTensor:
        tensor = self.model.tensors[role]
        slot = Slot(role, role, tensor, precision)
        line = Assignment(role, role, tensor.shape, precision, "measured")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            encoder = Encoder(pool, self.coding.backend, self._importance, False)
            (encoded,) = encoder.encoded([(slot, line)])
            metric = self._metric(role) if self._feeds_back(role, precision) else None
            if metric is None:
                return encoded
            return round_matrix(tensor.float32(), encoded, metric, pool=pool, kernels=fastest())

    def _feeds_back(self, role: str, precision: Precision) -> bool:
        tensor = self.model.tensors[role]
        if self.coding.rounding == "nearest":
            return False
        unchanged = isinstance(tensor, EncodedTensor) and tensor.precision == precision
        return not unchanged and precision.convention != "float" and has_levels(precision)

    def _metric(self, role: str) -> Metric | None:
        """The metric of a matrix's inputs; None if it has none. That of the last few inputs is kept."""
        name = next((name for name, shared in self.calibration.inputs.items() if role in shared), None)
        moment = None if name is None else self.calibration.moment(role)
        if name is None or moment is None:
            return None
        if name not in self._metrics:
            self._metrics[name] = Metric.of(moment, fastest().accumulate)
            while len(self._metrics) > _METRICS:
                self._metrics.popitem(last=False)
        return self._metrics[name]

    def _held(self, encoded: QuantizedTensor) -> AnyTensor:
        """In float32 where the model is small, else as it is encoded."""
        held = EncodedTensor(encoded.name, encoded.shape, encoded.precision, encoded.nbytes, _read(encoded), False)
        if 4 * sum(tensor.size for tensor in self.model.tensors.values()) > self.limit:
            return held
        return decoded(encoded.name, held)


def _read(encoded: QuantizedTensor) -> Callable[[int, int], Mapping[str, Array]]:
    return lambda start, stop: encoded.parts


__all__ = ["Coding", "Encodings"]
