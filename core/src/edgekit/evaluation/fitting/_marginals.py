"""Measures the divergence of whole choices, and of a choice with one unit changed to another precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Protocol

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


class Measures(Protocol):
    """Measures elsewhere what a `Bench` asks for, with the same results; see its methods."""

    def noise_floor(self) -> float:
        """Return the KL divergence of the source from itself, summed in another order, in nats."""
        ...

    def values(self, choice: Choice) -> F64:
        """Return the divergence at each position of a choice, float64 [positions]."""
        ...

    def each(self, base: Choice, pairs: Sequence[tuple[Unit, Precision]]) -> Iterator[Entry]:
        """Yield the divergence of each pair of a unit and a precision, with the other tensors as in `base`."""
        ...


@attrs.frozen(eq=False)
class Bench:
    """Measures variants of a model; recorded values are not measured again.

    Attributes:
        judge: measures the divergence from the source.
        encodings: encodes tensors in other precisions.
        record: the record of measured values.
        progress: called before each value.
        elsewhere: what measures instead; None measures here.
    """

    judge: Judge
    encodings: Encodings
    record: Record
    progress: Progress | None = None
    elsewhere: Measures | None = None
    _kept: dict[tuple[tuple[str, str], ...], F64] = attrs.field(factory=dict, init=False, repr=False)

    def noise_floor(self) -> float:
        """Return the KL divergence of the source from itself, summed in another order, in nats."""
        measuring = self.elsewhere or self.judge
        return float(self.record.value({"step": "noise"}, lambda: {"kl": measuring.noise_floor()})["kl"])

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
            values = (self.elsewhere or self).values(choice)
            while len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = values
        return self._kept[key]

    def values(self, choice: Choice) -> F64:
        """Return the divergence at each position, float64 [positions], measured here; infinite if a scale overflows."""
        try:
            return self.judge.values(with_tensors(self.judge.source, self.encodings.tensors(choice)))
        except ScaleOverflowError:
            return np.full(self.judge.scored, math.inf)

    def each(self, step: str, base: Choice, changes: Sequence[tuple[Unit, Sequence[Precision]]]) -> Table:
        """Return the divergence for each unit and precision, with all other tensors as in `base`.

        Args:
            step: name of the values in the record.
            base: the precisions of quantized tensors, by canonical name; others have the source's values.
            changes: the units, each with the precisions to try.
        """
        layers = self.judge.source.config.layers
        ordered = sorted(changes, key=lambda change: min(first_layer(role, layers) for role in change[0].roles))
        pairs = [(unit, precision) for unit, precisions in ordered for precision in precisions]
        table = Table()
        with closing(self._entries(base, pairs[self.record.ahead :])) as entries:
            for unit, precision in pairs:
                if self.progress:
                    self.progress(len(table), len(pairs), f"{unit.name} {precision.name}")
                key = {"step": step, "tensor": unit.name, "precision": precision.name}
                table[unit.name, precision.name] = _divergence(self.record.value(key, lambda: next(entries)))
        if self.progress:
            self.progress(len(pairs), len(pairs), "")
        return table

    def _entries(self, base: Choice, pairs: Sequence[tuple[Unit, Precision]]) -> Generator[Entry, None, None]:
        """Yield the divergences of pairs that are not recorded."""
        if self.elsewhere is not None:
            yield from self.elsewhere.each(base, pairs)
            return
        change = self.changing(base)
        for unit, precision in pairs:
            yield change(unit.roles, precision)

    def changing(self, base: Choice) -> Callable[[Sequence[str], Precision], Entry]:
        """Return what measures a choice with some tensors in another precision, here.

        Least is computed if their first layers ascend from call to call.
        """
        lazy = _LazyWalk(lambda: with_tensors(self.judge.source, self.encodings.tensors(base)), self.judge)
        return lambda roles, precision: _entry(partial(self._one, lazy, roles, precision))

    def _one(self, lazy: _LazyWalk, roles: Sequence[str], precision: Precision) -> Divergence:
        first = min(first_layer(role, self.judge.source.config.layers) for role in roles)
        walk = lazy.up_to(first)
        changed = self.encodings.tensors(dict.fromkeys(roles, precision))
        return self.judge.divergence(with_tensors(walk.model, changed), walk)


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
        """Return the walk advanced to a layer; from the start for one before the last one."""
        if self.walk is None or self.walk.layer > layer:
            self.walk = Walk.start(self.model(), self.judge.windows)
        self.walk = self.walk.up_to(layer)
        return self.walk


__all__ = ["Bench", "Measures", "Table", "Whole"]
