"""Measures the divergence of whole choices, and of a choice with one unit changed to another precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.errors import ScaleOverflowError
from edgekit.evaluation.fitting._encodings import Encodings
from edgekit.evaluation.fitting._measuring import Divergence, Judge, Walk, first_layer, with_tensors
from edgekit.evaluation.fitting._problem import Choice, Unit
from edgekit.evaluation.fitting._record import Entry, Record
from edgekit.pipeline._progress import Progress
from edgekit.precision import Precision
from edgekit.typing import F64

#: Divergences by the names of unit and precision.
Table = dict[tuple[str, str], Divergence]


@attrs.frozen
class Whole:
    """The divergence of a choice for the whole model.

    Attributes:
        divergence: KL divergence from the source.
        gain: the divergence of the choice that it was compared with, minus this one, in nats.
        gain_error: standard error of the gain, with the positions taken as independent.
    """

    divergence: Divergence
    gain: float
    gain_error: float


@attrs.frozen(eq=False)
class Bench:
    """Measures variants of a model; recorded values are not measured again.

    Attributes:
        judge: measures the divergence from the source.
        encodings: encodes tensors in other precisions.
        record: the record of measured values.
        progress: called before each value.
    """

    judge: Judge
    encodings: Encodings
    record: Record
    progress: Progress | None = None
    _kept: dict[tuple[tuple[str, str], ...], F64] = attrs.field(factory=dict, init=False, repr=False)

    def noise_floor(self) -> float:
        """Return the KL divergence of the source from itself, summed in another order, in nats."""
        return float(self.record.value({"step": "noise"}, lambda: {"kl": self.judge.noise_floor()})["kl"])

    def whole(self, step: str, choice: Choice, best: Choice | None = None) -> Whole:
        """Return the divergence of the model with all precisions of a choice.

        Args:
            step: name of the value in the record.
            choice: the precision of each tensor, by canonical name.
            best: a choice to compare with, position by position.
        """

        def measure() -> Entry:
            values = self._values(choice)
            entry = _entry(lambda: Divergence.of(values))
            if best is None:
                return entry
            gain = Divergence.of(self._values(best) - values)
            return entry | {"gain": _plain(gain.kl), "gain_error": _plain(gain.error)}

        entry = self.record.value({"step": step, "recipe": {role: p.name for role, p in choice.items()}}, measure)
        gain = entry.get("gain"), entry.get("gain_error")
        return Whole(_divergence(entry), -math.inf if gain[0] is None else gain[0], gain[1] or 0.0)

    def _values(self, choice: Choice) -> F64:
        """Return the divergence at each position, float64 [positions]; cached for the last two choices."""
        key = tuple((role, precision.name) for role, precision in choice.items())
        if key not in self._kept:
            try:
                model = with_tensors(self.judge.source, self.encodings.tensors(choice))
                values = self.judge.values(model)
            except ScaleOverflowError:
                values = np.full(self.judge.scored, math.inf)
            while len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = values
        return self._kept[key]

    def each(self, step: str, base: Choice, changes: Sequence[tuple[Unit, Sequence[Precision]]]) -> Table:
        """Return the divergence for each unit and precision, with all other tensors as in `base`.

        Args:
            step: name of the values in the record.
            base: the precisions of quantized tensors, by canonical name; others have the source's values.
            changes: the units, each with the precisions to try.
        """
        layers = self.judge.source.config.layers
        ordered = sorted(changes, key=lambda change: min(first_layer(role, layers) for role in change[0].roles))
        total, table = sum(len(precisions) for _, precisions in ordered), Table()
        lazy = _LazyWalk(lambda: with_tensors(self.judge.source, self.encodings.tensors(base)), self.judge)
        for unit, precisions in ordered:
            for precision in precisions:
                if self.progress:
                    self.progress(len(table), total, f"{unit.name} {precision.name}")
                key = {"step": step, "tensor": unit.name, "precision": precision.name}
                table[unit.name, precision.name] = self._value(key, partial(self._one, lazy, unit, precision))
        if self.progress:
            self.progress(total, total, "")
        return table

    def _one(self, lazy: _LazyWalk, unit: Unit, precision: Precision) -> Divergence:
        first = min(first_layer(role, self.judge.source.config.layers) for role in unit.roles)
        walk = lazy.up_to(first)
        changed = self.encodings.tensors(dict.fromkeys(unit.roles, precision))
        return self.judge.divergence(with_tensors(walk.model, changed), walk)

    def _value(self, key: Entry, measure: Callable[[], Divergence]) -> Divergence:
        return _divergence(self.record.value(key, lambda: _entry(measure)))


def _entry(measure: Callable[[], Divergence]) -> Entry:
    try:
        divergence = measure()
    except ScaleOverflowError:  # a precision that cannot hold the tensor is never chosen
        divergence = Divergence(math.inf, math.inf)
    return {name: _plain(value) for name, value in attrs.asdict(divergence).items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _divergence(entry: Entry) -> Divergence:
    return Divergence(*(math.inf if entry[name] is None else entry[name] for name in ("kl", "error")))


@attrs.define(eq=False)
class _LazyWalk:
    """A walk through the layers that starts when the first unrecorded value is measured."""

    model: Callable[[], Model]
    judge: Judge
    walk: Walk | None = None

    def up_to(self, layer: int) -> Walk:
        """Return the walk advanced to a layer; layers must be requested in ascending order."""
        if self.walk is None:
            self.walk = Walk.start(self.model(), self.judge.windows)
        self.walk = self.walk.up_to(layer)
        return self.walk


__all__ = ["Bench", "Table", "Whole"]
