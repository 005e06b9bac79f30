"""Tensors in other precisions, as the pipeline would write them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import attrs

from edgekit.architectures import Model
from edgekit.architectures.forward import CACHE_LIMIT
from edgekit.encoding._importance import fill_importance
from edgekit.fitting._measuring import decoded
from edgekit.pipeline._stream import Encoder
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Slot
from edgekit.rounding import Calibration
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor
from edgekit.typing import Array


@attrs.define(eq=False)
class Encodings:
    """Encodes a model's tensors, and keeps what fits into memory.

    Attributes:
        model: what is encoded.
        calibration: its importance weighs the errors.
        backend: of the encoders; None takes the fastest exact ones.
        limit: bytes that are kept.
    """

    model: Model
    calibration: Calibration
    backend: str | None = None
    limit: int = CACHE_LIMIT
    _kept: OrderedDict[tuple[str, str], AnyTensor] = attrs.field(factory=OrderedDict, init=False, repr=False)
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
            encoder = Encoder(pool, self.backend, self._importance, False)
            return next(iter(list(encoder.encoded([(slot, line)]))))

    def _held(self, encoded: QuantizedTensor) -> AnyTensor:
        """In float32 where the model is small, else as it is encoded."""
        held = EncodedTensor(encoded.name, encoded.shape, encoded.precision, encoded.nbytes, _read(encoded), False)
        if 4 * sum(tensor.size for tensor in self.model.tensors.values()) > self.limit:
            return held
        return decoded(encoded.name, held)


def _read(encoded: QuantizedTensor) -> Callable[[int, int], Mapping[str, Array]]:
    return lambda start, stop: encoded.parts


__all__ = ["Encodings"]
