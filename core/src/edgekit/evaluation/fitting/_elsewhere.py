"""Divergences by workers elsewhere: pairs of tensors and precisions travel, the divergences come back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path

import attrs
import numpy as np

from edgekit.encoding._codecs import codec
from edgekit.errors import UsageError
from edgekit.evaluation import _afar
from edgekit.evaluation._common import Source
from edgekit.evaluation.fitting._encodings import Coding, Encodings
from edgekit.evaluation.fitting._marginals import Bench
from edgekit.evaluation.fitting._measuring import Judge
from edgekit.evaluation.fitting._problem import Choice, Problem, Unit
from edgekit.evaluation.fitting._record import Entry, Record
from edgekit.evaluation.fitting._texts import Split
from edgekit.pipeline import _remote
from edgekit.pipeline.rounding import Calibration, read_calibration
from edgekit.precision import Precision
from edgekit.typing import F64

Choices = tuple[tuple[str, Precision], ...]


@attrs.frozen
class Setup:
    """What a worker measures with.

    Attributes:
        source: the model in the layout of the format, and the calibration's file.
        calibration: the path of that file.
        coding: the method by which codes are chosen.
        windows: token ids, int32 [count, context], as bytes.
        context: number of tokens in a window.
    """

    source: _remote.Source
    calibration: str
    coding: Coding
    windows: bytes
    context: int


@attrs.frozen
class Elsewhere:
    """Measures on the workers of an executor; the same values as a `Bench` that measures itself.

    Attributes:
        workers: the workers, and how they find the model.
        setup: what they measure with.
    """

    workers: _afar.Workers
    setup: Setup

    @classmethod
    def of(
        cls, executor: Executor | None, given: Source, problem: Problem, parts: Split, coding: Coding
    ) -> Elsewhere | None:
        """Return the measurements by an executor's workers; None if there is none, or it has threads of this process.

        Raises:
            UsageError: the model is given as an opened artifact, or the calibration is in memory.
        """
        if _remote.elsewhere(executor) is None:
            return None
        file = parts.calibration.path
        if file is None:
            raise UsageError(
                "with an executor the workers read the calibration themselves; write it to a file (to= of "
                "edgekit.calibrate) and give what edgekit.pipeline.rounding.read_calibration returns"
            )
        options = {option for unit in problem.units for option in unit.options}
        backends = {codec(option, coding.backend).backend for option in options if option.convention != "float"}
        workers = _afar.Workers.of(
            executor, given, problem.layout.source, format=problem.format, backends=backends, others=[file]
        )
        assert workers is not None
        windows = parts.choosing.astype(np.int32)
        return cls(
            workers,
            Setup(workers.source, str(file.absolute()), coding, windows.tobytes(), int(windows.shape[1])),
        )

    def noise_floor(self) -> float:
        """Return `Judge.noise_floor`."""
        return self.workers.call(partial(_noise, self.setup))

    def values(self, choice: Choice) -> F64:
        """Return the divergence at each position of a model with the precisions of a choice, float64 [positions]."""
        return self.workers.call(partial(_values, self.setup, tuple(choice.items())))

    def each(self, base: Choice, pairs: Sequence[tuple[Unit, Precision]]) -> Iterator[Entry]:
        """Yield the divergence of each pair of a unit and a precision with the other tensors as in `base`, in order.

        The precisions of a unit are measured by one worker, which needs its moment and the states before it once.
        """
        calls = (
            partial(_alone, self.setup, tuple(base.items()), unit.roles, tuple(precision for _, precision in group))
            for unit, group in groupby(pairs, lambda pair: pair[0])
        )
        with closing(self.workers.in_order(calls)) as results:
            for entries in results:
                yield from entries


@functools.lru_cache(maxsize=1)
def _bench(setup: Setup) -> Bench:
    """Return what measures here, in a worker; the model and its encodings are kept for the next call."""
    model = _afar.model(setup.source)
    windows = np.frombuffer(setup.windows, np.int32).reshape(-1, setup.context)
    calibration: Calibration = read_calibration(Path(setup.calibration))
    return Bench(Judge.on(model, windows), Encodings(model, calibration, setup.coding), Record(None, {}))


@functools.lru_cache(maxsize=1)
def _changing(setup: Setup, base: Choices) -> Callable[[Sequence[str], Precision], Entry]:
    return _bench(setup).changing(dict(base))


def _alone(setup: Setup, base: Choices, roles: tuple[str, ...], precisions: tuple[Precision, ...]) -> list[Entry]:
    change = _changing(setup, base)
    return [change(roles, precision) for precision in precisions]


def _values(setup: Setup, choice: Choices) -> F64:
    return _bench(setup).values(dict(choice))


def _noise(setup: Setup) -> float:
    return _bench(setup).judge.noise_floor()


__all__ = ["Elsewhere", "Setup"]
