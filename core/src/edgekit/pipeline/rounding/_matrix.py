"""Rounds one weight matrix: starting from the encoder's scales, chooses codes, scales and biases of least loss."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from functools import partial

import attrs
import numpy as np

from edgekit.bridges import Choices, Levels, choices, levels, recoded, rescaled
from edgekit.errors import InexactError
from edgekit.pipeline.rounding._factor import DAMPING, damped, decreasing, single, spread, upper_factor
from edgekit.pipeline.rounding._feedback import Grid, feedback, improve, settle
from edgekit.pipeline.rounding._kernels import NUMPY, Accumulate, Kernels, accumulate
from edgekit.pipeline.rounding._slopes import Correlation
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, U8, Indices

#: Rows that one thread rounds at a time at most; bounds its memory, and does not change the result.
ROWS = 704
#: Rows of the widest vector; and a number of them, 1 KiB of float32, whose multiples share few places of a cache.
_VECTOR, _ALIASED = 16, 256
#: Largest number of further rounds of sweeps and scale fits; they end earlier when few codes change.
ROUNDS = 2
#: A sweep that changes a smaller share of the codes than this ends its round.
_FEW = 1e-3


@attrs.frozen(eq=False)
class Metric:
    """The metric of the rounding loss ``(w - q) H (w - q)^T``, and the arrays derived from it.

    Attributes:
        h: H, the damped moment of the inputs, float32 [cols, cols].
        order: the column indices [cols] in the order in which they are rounded.
        factor: the triangular factor of `h` in that order, float32 [cols, cols].
        spread: the weights of a column's error in the targets of later columns, float32 [cols, cols], in that order.
        correlation: `h` as integers.
    """

    h: F32
    order: Indices
    factor: F32
    spread: F32
    correlation: Correlation

    @classmethod
    def of(
        cls, moment: F32, accumulate: Accumulate = accumulate, damping: float = DAMPING, *, reuse: bool = False
    ) -> Metric:
        """Return the metric of a moment, float32 [cols, cols]; `reuse` lets its memory become that of `h`.

        Raises:
            NonFiniteError: the moment has values that are not finite, or is not positive definite.
        """
        h = damped(moment, damping, reuse=reuse)
        order = decreasing(h)
        factor = upper_factor(_reordered(h, order), accumulate)
        narrow, shares = single(factor), spread(factor)
        del factor  # twice as large as either
        return cls(h, order, narrow, shares, Correlation.of(h))

    def solve(self, values: F32, kernels: Kernels = NUMPY) -> F32:
        """Return ``h^-1 values``, float32 [cols, rows], for values [cols, rows]."""
        found = np.empty_like(values)
        found[self.order] = _forward(self.factor, _backward(self.factor, values[self.order], kernels), kernels)
        return found


def _reordered(h: F32, order: Indices) -> F32:
    """Return ``h[order][:, order]``, some rows at a time: there is one such array in memory."""
    found = np.empty_like(h)
    for start in range(0, len(h), _VECTOR):
        rows = slice(start, start + _VECTOR)
        found[rows] = h[order[rows]][:, order]
    return found


#: Columns that are solved at once.
_SOLVED = 32


def _backward(factor: F32, values: F32, kernels: Kernels) -> F32:
    """Solve ``R y = values`` in place, for R upper triangular [cols, cols] and values [cols, rows]."""
    cols = len(factor)
    for start in range((cols - 1) // _SOLVED * _SOLVED, -1, -_SOLVED):
        own, later = slice(start, min(start + _SOLVED, cols)), slice(start + _SOLVED, None)
        kernels.accumulate(values[own], -factor[own, later].T, values[later])
        kernels.substitute(values[own][::-1], factor[own, own].T[::-1, ::-1])  # the last column first
    return values


def _forward(factor: F32, values: F32, kernels: Kernels) -> F32:
    """Solve ``R^T z = values`` in place, for R upper triangular [cols, cols] and values [cols, rows]."""
    cols = len(factor)
    for start in range(0, cols, _SOLVED):
        own = slice(start, min(start + _SOLVED, cols))
        kernels.accumulate(values[own], -factor[:start, own], values[:start])
        kernels.substitute(values[own], factor[own, own])
    return values


def roundable(tensor: QuantizedTensor) -> bool:
    """Return whether a tensor's values are levels times a scale, so that its codes can be chosen one by one."""
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
    """Choose the codes, scales and biases of a matrix with error feedback.

    Args:
        weights: the values to round, float32 [rows, cols].
        tensor: the matrix as its encoder stored it; its scales are the starting point.
        metric: the metric of the matrix's inputs; columns whose input is always 0 get the nearest codes.
        pool: an executor for groups of rows; the result is the same without one.
        kernels: the arithmetic.

    Returns:
        The tensor with new codes, and new scales and biases if its format lets them be chosen.
    """
    known, possible = levels(tensor), choices(tensor)
    # ggml's encoders have searched for a scale under the importance; fitted anew it leaves more loss (0.8 % in Q4_0). A
    # bias beside it is worth fitting all the same (7.5 % less in Q4_K).
    settled = known.bias is not None or tensor.precision.convention != "ggml"
    step = _rows(len(weights))
    work = [
        _Rows(weights[start : start + step], known, possible, metric, start, kernels, settled)
        for start in range(0, len(weights), step)
    ]
    parts = [part.run() for part in work] if pool is None else _all([pool.submit(part.run) for part in work])
    if possible is not None:
        scale = np.concatenate([grid.scale.T for _, grid in parts])
        bias = None if parts[0][1].bias is None else np.concatenate([_turned(grid.bias) for _, grid in parts])
        tensor = rescaled(tensor, scale, bias)
    return recoded(tensor, np.concatenate([codes.T for codes, _ in parts]))


def _rows(count: int) -> int:
    """Rows that one thread rounds at a time: an even number of parts of nearly the same size; vectors are whole."""
    pairs = max(1, -(-count // (2 * ROWS)))
    step = -(-count // (2 * pairs) // _VECTOR) * _VECTOR
    return step if step % _ALIASED else step + _VECTOR


def _turned(bias: F32 | None) -> F32:
    assert bias is not None
    return bias.T


def _all(futures: Sequence[Future[tuple[U8, Grid]]]) -> list[tuple[U8, Grid]]:
    return [future.result() for future in futures]


@attrs.frozen(eq=False)
class _Rows:
    """A block of rows of a matrix, which one thread rounds."""

    weights: F32
    levels: Levels
    choices: Choices | None
    metric: Metric
    start: int
    kernels: Kernels
    settled: bool

    def run(self) -> tuple[U8, Grid]:
        """Round the rows; return the codes, uint8 [cols, rows], and the grid with its new scales."""
        rows = slice(self.start, self.start + len(self.weights))
        known = self.levels
        zero, bias = (None if part is None else part[rows] for part in (known.zero, known.bias))
        grid = Grid.of(attrs.evolve(known, codes=known.codes[rows], scale=known.scale[rows], zero=zero, bias=bias))
        weights, metric = np.ascontiguousarray(self.weights.T), self.metric
        choices = self.choices
        if choices is not None and self.settled:
            settle(weights, grid, np.einsum("ii->i", metric.h), choices, rows, self.kernels)
        codes = feedback(weights, grid, metric.spread, metric.order, self.kernels)
        improved = partial(improve, weights, grid, metric.h, metric.correlation)
        if choices is not None:
            improved(codes, self.kernels, sweep=False, choices=choices, rows=rows)
            codes = feedback(weights, grid, metric.spread, metric.order, self.kernels)
        for _ in range(ROUNDS):
            if improved(codes, self.kernels, choices=choices, rows=rows) <= _FEW * codes.size:
                break
        if choices is not None:
            improved(codes, self.kernels)
        return codes, grid


__all__ = ["ROUNDS", "ROWS", "Metric", "round_matrix", "roundable"]
