"""Encodes tensors in candidate precisions as the pipeline would write them, with a cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import attrs

from edgekit.architectures import Model
from edgekit.architectures.forward import CACHE_LIMIT
from edgekit.bridges import has_levels
from edgekit.encoding._importance import fill_importance
from edgekit.evaluation.fitting._measuring import decoded
from edgekit.files.workers import cores
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
    """The method by which codes are chosen.

    Attributes:
        rounding: ``"nearest"`` or ``"feedback"``.
        backend: the name of the encoders; None for the fastest exact ones.
    """

    rounding: Rounding = "feedback"
    backend: str | None = None


#: Number of cached metrics: as many as a layer has.
_METRICS = 4


@attrs.define(eq=False)
class Encodings:
    """Encodes a model's tensors, and caches the results up to a limit.

    With feedback each matrix is rounded for its inputs in the original model. `edgekit.quantize` rounds it for its
    inputs in the quantized model, which depend on the precisions of all layers before and give a better result.

    Attributes:
        model: the model to encode.
        calibration: the calibration; its importance weights the errors, its moments are used for error feedback.
        coding: the method by which codes are chosen.
        limit: the largest number of bytes to cache.
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
        """Return a tensor with the values that it has after encoding in a precision.

        Raises:
            ScaleOverflowError: a scale is too large for the precision.
            NonFiniteError: a value of the tensor is not finite.
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
        """Return the encoded tensors of a choice, by canonical name."""
        return {role: self.tensor(role, precision) for role, precision in choice.items()}

    def _encoded(self, role: str, precision: Precision) -> QuantizedTensor:
        tensor = self.model.tensors[role]
        slot = Slot(role, role, tensor, precision)
        line = Assignment(role, role, tensor.shape, precision, "measured")
        with ThreadPoolExecutor(cores()) as pool:
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
        """Return the metric of a matrix's inputs; None if the calibration has no moment of it. Cached per layer."""
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
        """Return the tensor to cache: decoded to float32 if the model is small, else encoded."""
        held = EncodedTensor(encoded.name, encoded.shape, encoded.precision, encoded.nbytes, _read(encoded), False)
        if 4 * sum(tensor.size for tensor in self.model.tensors.values()) > self.limit:
            return held
        return decoded(encoded.name, held)


def _read(encoded: QuantizedTensor) -> Callable[[int, int], Mapping[str, Array]]:
    return lambda start, stop: encoded.parts


__all__ = ["Coding", "Encodings"]
