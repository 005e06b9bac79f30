"""One weight matrix, or the rows of one: from the encoder's scales to codes, scales and biases that lose least."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future

import attrs
import numpy as np

from edgekit.bridges import Choices, Levels, choices, levels, recoded, rescaled
from edgekit.errors import InexactError
from edgekit.pipeline.rounding._factor import DAMPING, damped, decreasing, spread, upper_factor
from edgekit.pipeline.rounding._feedback import Grid, feedback, refit, sweep
from edgekit.pipeline.rounding._kernels import NUMPY, Accumulate, Kernels, accumulate
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, F64, U8, Indices

#: Rows that are worked on together: the bytes do not depend on it, and it bounds the memory of a thread.
ROWS = 512
#: Rounds of sweeps and of fitting scales after the first, while they pay.
ROUNDS = 2
#: A sweep that changes a smaller share of the codes is the last of its round.
_FEW = 1e-3


@attrs.frozen(eq=False)
class Metric:
    """How the loss of rounding is measured: the moment of the inputs, and what follows from it.

    Attributes:
        h: the damped moment, float32 [cols, cols].
        order: of the columns, as they are rounded.
        factor: the triangular factor of `h` in that order, float64.
        spread: what the errors of columns add to the targets of later ones, in that order.
    """

    h: F32
    order: Indices
    factor: F64
    spread: F32

    @classmethod
    def of(cls, moment: F32, accumulate: Accumulate = accumulate, damping: float = DAMPING) -> Metric:
        """The metric of a moment [cols, cols].

        Raises:
            NonFiniteError: the moment is not finite, or not positive.
        """
        h = damped(moment, damping)
        order = decreasing(h)
        factor = upper_factor(h[np.ix_(order, order)], accumulate)
        return cls(h, order, factor, spread(factor))

    def solve(self, values: F32, accumulate: Accumulate = accumulate) -> F32:
        """``h^-1 values`` for values [cols, rows], float32."""
        factor = self.factor.astype(np.float32)
        found = np.empty_like(values)
        found[self.order] = _forward(factor, _backward(factor, values[self.order], accumulate), accumulate)
        return found


_SOLVED = 32


def _backward(factor: F32, values: F32, accumulate: Accumulate) -> F32:
    """Solve ``R y = values``, R upper triangular, in place."""
    cols = len(factor)
    for start in range((cols - 1) // _SOLVED * _SOLVED, -1, -_SOLVED):
        stop = min(start + _SOLVED, cols)
        accumulate(values[start:stop], -factor[start:stop, stop:].T, values[stop:])
        for j in range(stop - 1, start - 1, -1):
            values[j] /= factor[j, j]
            values[start:j] -= factor[start:j, j, None] * values[j]
    return values


def _forward(factor: F32, values: F32, accumulate: Accumulate) -> F32:
    """Solve ``R^T z = values``, in place."""
    cols = len(factor)
    for start in range(0, cols, _SOLVED):
        stop = min(start + _SOLVED, cols)
        accumulate(values[start:stop], -factor[:start, start:stop], values[:start])
        for j in range(start, stop):
            values[j] /= factor[j, j]
            values[j + 1 : stop] -= factor[j, j + 1 : stop, None] * values[j]
    return values


def roundable(tensor: QuantizedTensor) -> bool:
    """Whether a format has levels under scales, so that its codes can be chosen."""
    try:
        levels(tensor)
    except InexactError:
        return False
    return True


def round_matrix(
    weights: F32,
    tensor: QuantizedTensor,
    metric: Metric,
    *,
    pool: Executor | None = None,
    kernels: Kernels = NUMPY,
) -> QuantizedTensor:
    """Choose the codes of a matrix with error feedback, and scales and biases with them.

    Args:
        weights: what to round, float32 [rows, cols].
        tensor: the matrix as its encoder stored it, whose scales are started from.
        metric: of its inputs; columns that are never used keep their codes.
        pool: computes groups of rows; the bytes are the same without.
        kernels: what computes.

    Returns:
        The tensor with other codes, and other scales where its format lets them be chosen.
    """
    known, possible = levels(tensor), choices(tensor)
    work = [
        _Rows(weights[start : start + ROWS], known, possible, metric, start, kernels)
        for start in range(0, len(weights), ROWS)
    ]
    parts = [part.run() for part in work] if pool is None else _all([pool.submit(part.run) for part in work])
    if possible is not None:
        scale = np.concatenate([grid.scale.T for _, grid in parts])
        bias = None if parts[0][1].bias is None else np.concatenate([_turned(grid.bias) for _, grid in parts])
        tensor = rescaled(tensor, scale, bias)
    return recoded(tensor, np.concatenate([codes.T for codes, _ in parts]))


def _turned(bias: F32 | None) -> F32:
    assert bias is not None
    return bias.T


def _all(futures: Sequence[Future[tuple[U8, Grid]]]) -> list[tuple[U8, Grid]]:
    return [future.result() for future in futures]


@attrs.frozen(eq=False)
class _Rows:
    """Some rows of a matrix."""

    weights: F32
    levels: Levels
    choices: Choices | None
    metric: Metric
    start: int
    kernels: Kernels

    def run(self) -> tuple[U8, Grid]:
        """The codes [cols, rows], and the grid with its new scales."""
        rows = slice(self.start, self.start + len(self.weights))
        known = self.levels
        zero, bias = (None if part is None else part[rows] for part in (known.zero, known.bias))
        grid = Grid.of(attrs.evolve(known, codes=known.codes[rows], scale=known.scale[rows], zero=zero, bias=bias))
        weights, metric = np.ascontiguousarray(self.weights.T), self.metric
        codes = feedback(weights, grid, metric.spread, metric.order, self.kernels)
        choices = self.choices
        if choices is not None:
            refit(weights, grid, choices, rows, metric.h, codes, self.kernels)
            codes = feedback(weights, grid, metric.spread, metric.order, self.kernels)
        for _ in range(ROUNDS):
            changed = sweep(weights, grid, metric.h, codes, self.kernels)
            if choices is not None:
                changed += refit(weights, grid, choices, rows, metric.h, codes, self.kernels)
            if changed <= _FEW * codes.size:
                break
        if choices is not None:
            sweep(weights, grid, metric.h, codes, self.kernels)
        return codes, grid


__all__ = ["ROUNDS", "ROWS", "Metric", "round_matrix", "roundable"]
