"""The time of a run: what its steps took, and what further ones will take by that.

A step cannot be interrupted. So none is begun unless, by the prediction, it ends within the limit with time left for
running and gating what is made already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

#: How many times as long as the longest step of its stage the first step of a method is taken to last, where none of it
#: was seen. Guesses on the long side, not measurements: error feedback solves for every row, and a fit measures every
#: tensor in every precision. One that is too large leaves a candidate out; one too small takes time from the gates.
UNSEEN = {"feedback": 4.0, "fit": 20.0}


@attrs.frozen
class Step:
    """A step of a run.

    Attributes:
        stage: such as ``quantize``.
        format: of its artifact.
        method: how the artifact's codes are chosen.
        nbytes: of the artifact; 0 where it is not known.
    """

    stage: str
    format: str
    method: str = "none"
    nbytes: int = 0


class Clock:
    """Measures steps, and predicts others by those of their kind.

    Args:
        limit: seconds of the run; None for no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._begun = time.monotonic()
        self._took: list[tuple[Step, float]] = []

    @property
    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self.limit is None else self.limit - (time.monotonic() - self._begun)

    @contextmanager
    def measuring(self, step: Step) -> Iterator[None]:
        """Measure a step, also one that fails."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._took.append((step, time.monotonic() - begun))

    def predicted(self, step: Step) -> float:
        """Return the seconds that a step will take: as the longest of its kind in this run, 0 if none is known.

        Its kind is its stage, format and method; where none was seen, stage and method in other formats; else the
        longest step of the stage, times `UNSEEN` of the method. A larger artifact takes longer in proportion.
        """
        of_stage = [each for each in self._took if each[0].stage == step.stage]
        of_method = [each for each in of_stage if each[0].method == step.method]
        of_format = [each for each in of_method if each[0].format == step.format]
        factor = 1.0 if of_method else UNSEEN.get(step.method, 1.0)
        seen = of_format or of_method or of_stage
        return factor * max((took * _larger(step, other) for other, took in seen), default=0.0)


def _larger(step: Step, other: Step) -> float:
    """How many times as large as another a step's artifact is, at least 1."""
    return max(1.0, step.nbytes / other.nbytes) if other.nbytes else 1.0


__all__ = ["UNSEEN", "Clock", "Step"]
