"""Codes chosen with error feedback, for every format whose values are levels times a scale.

Arrays are transposed, [cols, rows]: a column of the weights is contiguous in memory, so that each step is one
operation on all rows. Rows do not depend on each other.
"""

from __future__ import annotations

import attrs
import numpy as np

from edgekit.bridges import Choices, Levels
from edgekit.pipeline.rounding._kernels import LEVELS, NUMPY, Kernels, Places, Totals, middles, totals
from edgekit.pipeline.rounding._slopes import Correlation, Slopes
from edgekit.typing import F32, F64, U8, Bools, Indices

#: Columns of a block: errors are added to later blocks once per block, and to later columns of the block one by one.
BLOCK = 32
#: How often codes and scales are fitted to the weights alone, in turn.
_SETTLED = 3
#: Columns of a group whose codes and scales are improved in one go; those of a wider one after one another.
_WIDEST = 256


@attrs.frozen(eq=False)
class Grid:
    """The levels of a tensor and their scales, transposed.

    Attributes:
        table: the levels in ascending order, float32 [n].
        group: number of columns that share a scale.
        scale, inverse, zero, bias: float32 [groups, rows]; the inverse of a scale of 0 is 0.
        even: whether neighbouring levels differ by 1, so that the nearest one is found by rounding.
    """

    table: F32
    group: int
    scale: F32
    inverse: F32
    zero: F32 | None
    bias: F32 | None
    even: bool

    @classmethod
    def of(cls, levels: Levels) -> Grid:
        """Return the grid of a tensor's levels; its arrays are copies."""
        scale = np.array(levels.scale.T, order="C")  # a copy, since `move` changes it
        zero, bias = (None if part is None else np.array(part.T, order="C") for part in (levels.zero, levels.bias))
        return cls(levels.table, levels.group, scale, _inverse(scale), zero, bias, levels.even)

    @property
    def places(self) -> Places:
        """The same, for kernels."""
        table, first = None if self.even else self.table, float(self.table[0])
        return Places(first, len(self.table), self.group, self.scale, self.inverse, self.zero, self.bias, table)

    @property
    def for_kernels(self) -> bool:
        """Whether kernels can round its columns."""
        return self.even or len(self.table) <= LEVELS

    def move(self, group: int | slice, best: _Best) -> int:
        """Set the scales and biases of a group, or of several, to the best ones; return how many change."""
        better = best.gain > 0
        changed = int(np.count_nonzero(better))
        if changed:
            np.copyto(self.scale[group], best.scale, where=better)
            np.copyto(self.inverse[group], _inverse(best.scale), where=better)
            if self.bias is not None and best.bias is not None:
                np.copyto(self.bias[group], best.bias, where=better)
        return changed

    def nearest(self, target: F32, group: int | slice) -> U8:
        """Return the codes of the levels nearest to targets [..., rows] of a group, or [groups, n, rows] of several.

        A target midway between two levels gets the one with the even value if levels differ by 1, else the lower one.
        """
        t = target if self.bias is None else target - _of(self.bias, group)
        with np.errstate(over="ignore"):  # under a tiny scale the ends are the nearest
            t = t * _of(self.inverse, group)
        if self.zero is not None:
            t = t + _of(self.zero, group)
        if self.even:
            np.rint(t, out=t)
            t -= self.table[0]
            np.maximum(t, np.float32(0), out=t)
            places: U8 = np.minimum(t, np.float32(len(self.table) - 1), out=t).astype(np.uint8)
            return places
        found: U8 = np.searchsorted(middles(self.table), t).astype(np.uint8)
        return found

    def values(self, codes: U8, group: int | slice) -> F32:
        """Return the decoded values, float32, of codes [..., rows] of a group, or [groups, n, rows] of several."""
        value: F32 = codes + self.table[0] if self.even else self.table[codes]
        if self.zero is not None:
            value -= _of(self.zero, group)
        value *= _of(self.scale, group)
        if self.bias is not None:
            value += _of(self.bias, group)
        return value

    def decoded(self, codes: U8) -> F32:
        """Return the decoded values, float32 [cols, rows], of codes [cols, rows]."""
        starts = range(0, len(codes), self.group)
        parts = [self.values(codes[start : start + self.group], group) for group, start in enumerate(starts)]
        return np.concatenate(parts)


def _of(part: F32, group: int | slice) -> F32:
    """What a part [groups, rows] says of a group, [rows], or of several, [groups, 1, rows]."""
    return part[group, None] if isinstance(group, slice) else part[group]


def _inverse(scale: F32) -> F32:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def settle(weights: F32, grid: Grid, importance: F32, choices: Choices, rows: slice, kernels: Kernels = NUMPY) -> None:
    """Fit scales and biases to the weights one by one, in place, so that feedback starts from good ones.

    The codes are the nearest ones; the best scale and bias of a group are then the least squares solution with weighted
    columns. Encoders that take no importance, as MLX's, choose scales by the extremes of a group alone.

    Args:
        weights: float32 [cols, rows].
        grid: the levels; its scales and biases are changed in place.
        importance: weight of each column, float32 [cols]: the diagonal of the moment.
        choices: the scales and biases that the format can store.
        rows: the rows of the tensor that `weights` holds.
        kernels: the arithmetic.
    """
    (cols, count), size = weights.shape, grid.group
    whole, together = cols // size, max(1, _WIDEST // size)
    parts = [slice(first, min(first + together, whole)) for first in range(0, whole, together)]
    if cols % size:
        parts.append(slice(whole, whole + 1))
    for group in parts:
        own, groups = slice(group.start * size, group.stop * size), group.stop - group.start
        values, weight = weights[own].reshape(groups, -1, count), importance[own].reshape(groups, -1, 1)
        for _ in range(_SETTLED):
            codes = grid.nearest(values, group)
            errors = values - grid.values(codes, group)
            normal = _Normal.alone(grid, weight, codes, errors, group, kernels, _free(grid, choices))
            if not grid.move(group, normal.best(grid, choices, rows, group)):
                break


def feedback(weights: F32, grid: Grid, spread: F32, order: Indices, kernels: Kernels = NUMPY) -> U8:
    """Round column by column; the error of each column changes the targets of the columns after it.

    Args:
        weights: float32 [cols, rows].
        grid: the levels.
        spread: the result of `edgekit.pipeline.rounding._factor.spread`, with the columns in `order`.
        order: the column indices [cols] in the order in which they are rounded.
        kernels: the arithmetic.

    Returns:
        The codes, uint8 [cols, rows].
    """
    cols = len(weights)
    codes = np.empty(weights.shape, np.uint8)
    errors = np.zeros(weights.shape, np.float32)
    for start in range(0, cols, BLOCK):
        stop = min(start + BLOCK, cols)
        targets = weights[order[start:stop]]
        kernels.accumulate(targets, spread[:start, start:stop], errors[:start])
        if kernels.feed is not None and grid.for_kernels:
            block, own = order[start:stop], np.ascontiguousarray(spread[start:stop, start:stop])
            kernels.feed(targets, errors[start:stop], codes, weights, grid.places, block, own)
            continue
        for j, column in enumerate(order[start:stop]):
            group = column // grid.group
            codes[column] = grid.nearest(targets[j], group)
            errors[start + j] = weights[column] - grid.values(codes[column], group)
            targets[j + 1 :] += spread[start + j, start + j + 1 : stop, None] * errors[start + j]
    return codes


def improve(
    weights: F32,
    grid: Grid,
    h: F32,
    correlation: Correlation,
    codes: U8,
    kernels: Kernels = NUMPY,
    *,
    sweep: bool = True,
    choices: Choices | None = None,
    rows: slice = slice(0),
) -> int:
    """Lower the loss in place by one pass over the columns: of the codes, of the scales and biases, or of both.

    A sweep is coordinate descent: each code gets its best value with all others fixed. The best scale and bias of a
    group are the least squares solution in the metric of `h`, its codes fixed; the format can store only some, and the
    best storable neighbour of the optimum replaces the present one if it lowers the loss.

    Args:
        weights: float32 [cols, rows].
        grid: the levels; its scales and biases are changed in place.
        h: the damped moment, float32 [cols, cols].
        correlation: of `h`.
        codes: uint8 [cols, rows], changed in place.
        kernels: the arithmetic.
        sweep: whether codes are changed.
        choices: the scales and biases that the format can store; None keeps those of the grid.
        rows: the rows of the tensor that `weights` holds.

    Returns:
        The number of codes, and of (group, row) pairs, that changed.
    """
    descent = _Descent.of(weights, grid, h, correlation, codes, kernels)
    if choices is None:
        return descent.run(_step(grid.group), sweep)
    fit = _Fit(choices, rows)
    if grid.group <= _WIDEST:
        return descent.run(_step(grid.group, True), sweep, fit)
    changed = descent.run(BLOCK, sweep) if sweep else 0
    return changed + descent.run(grid.group, False, fit)


def _step(group: int, whole: bool = False) -> int:
    """Columns that are worked on at once: whole groups, at least if their scales are."""
    if group < BLOCK:
        return BLOCK // group * group
    return group if whole else BLOCK


@attrs.frozen
class _Fit:
    """Which scales and biases can be chosen, and for which rows."""

    choices: Choices
    rows: slice


@attrs.frozen(eq=False)
class _Descent:
    """A state of codes and scales, and the slopes of its loss.

    Attributes:
        values, errors: what the codes stand for, and the weights less that, float32 [cols, rows].
    """

    weights: F32
    grid: Grid
    h: F32
    codes: U8
    kernels: Kernels
    values: F32
    errors: F32
    slopes: Slopes

    @classmethod
    def of(cls, weights: F32, grid: Grid, h: F32, correlation: Correlation, codes: U8, kernels: Kernels) -> _Descent:
        values = grid.decoded(codes)
        errors = weights - values
        return cls(weights, grid, h, codes, kernels, values, errors, Slopes.of(correlation, errors, kernels))

    def run(self, step: int, sweep: bool, fit: _Fit | None = None) -> int:
        """Change codes, if `sweep`, and scales, if `fit`; return how many of both."""
        changed, cols = 0, len(self.weights)
        for start in range(0, cols, step):
            part = slice(start, min(start + step, cols))
            slopes, moved = self.slopes(part), 0
            if sweep:
                before = None if fit is None else (slopes.copy(), self.errors[part].copy())
                moved = self._sweep(part, slopes)
                if before is not None:  # the sweep leaves the slopes of earlier columns of the block as they were
                    slopes = before[0]
                    if moved:
                        self.kernels.accumulate(slopes, self.h[part, part], self.errors[part] - before[1])
            if fit is not None:
                moved += self._fit(part, slopes, fit)
            if moved:
                self.slopes.change(part, self.errors)
            changed += moved
        return changed

    def _sweep(self, part: slice, slopes: F32) -> int:
        """Improve the codes of some columns one after another, and the slopes of those after them."""
        grid, codes, values, errors = self.grid, self.codes, self.values, self.errors
        if self.kernels.descend is not None and grid.for_kernels:
            own = np.ascontiguousarray(self.h[part, part])
            return self.kernels.descend(slopes, values, errors, codes, grid.places, part.start, own)
        changed = 0
        for j, column in enumerate(range(part.start, part.stop)):
            group = column // grid.group
            best = grid.nearest(values[column] + slopes[j] / self.h[column, column], group)
            different = int(np.count_nonzero(best != codes[column]))
            if not different:
                continue
            changed += different
            moved = grid.values(best, group)
            step = moved - values[column]
            codes[column], values[column] = best, moved
            errors[column] -= step
            slopes[j + 1 :] -= self.h[column, column + 1 : part.stop, None] * step
        return changed

    def _fit(self, part: slice, slopes: F32, fit: _Fit) -> int:
        """Improve the scales and biases of the groups of some columns; their slopes change."""
        changed, size = 0, self.grid.group
        for start in range(part.start, part.stop, size):
            group, own = start // size, slice(start, min(start + size, part.stop))
            here = slopes[start - part.start : own.stop - part.start]
            free = _free(self.grid, fit.choices)
            normal = _Normal.of(self.grid, self.h, self.codes, here, group, own, self.kernels, free)
            moved = self.grid.move(group, normal.best(self.grid, fit.choices, fit.rows, group))
            if not moved:
                continue
            changed += moved
            values = self.grid.values(self.codes[own], group)
            if own.stop < part.stop:
                later = slice(own.stop, part.stop)
                self.kernels.accumulate(slopes[own.stop - part.start :], self.h[own, later], self.values[own] - values)
            self.values[own] = values
            self.errors[own] = self.weights[own] - values
        return changed


@attrs.define(eq=False)
class _Best:
    """The best scales and biases so far, [rows] or [groups, rows], and by how much they lower the loss."""

    scale: F32
    bias: F32 | None
    gain: F64

    def take(self, scale: F32, bias: F32 | None, gain: F64, possible: Bools) -> None:
        """Replace them by candidates in the rows where these are possible and lower the loss more."""
        better = possible & (gain > self.gain)
        np.copyto(self.scale, scale, where=better)
        np.copyto(self.gain, gain, where=better)
        if self.bias is not None and bias is not None:
            np.copyto(self.bias, bias, where=better)


@attrs.frozen(eq=False)
class _Shift:
    """What the normal equations say of a group's bias, float64 [rows] or [groups, rows].

    Attributes:
        by_bias: minus half the first derivative of the loss.
        scale_bias, bias_bias: half the second derivatives.
    """

    by_bias: F64
    scale_bias: F64
    bias_bias: F64


@attrs.frozen(eq=False)
class _Normal:
    """The normal equations of a group's scale, float64 [rows], or of several groups', [groups, rows].

    Attributes:
        by_scale: minus half the first derivative of the loss.
        scale_scale: half the second derivative.
        shift: the same of the bias; None if it stays as it is.
    """

    by_scale: F64
    scale_scale: F64
    shift: _Shift | None

    @classmethod
    def of(
        cls, grid: Grid, h: F32, codes: U8, slopes: F32, group: int, part: slice, kernels: Kernels, free: bool
    ) -> _Normal:
        """Return the equations of the columns `part` of a group, with their codes fixed and their slopes [n, rows]."""
        direction, total = _direction(grid, codes[part], group), kernels.totals
        turned = np.zeros_like(direction)
        kernels.accumulate(turned, h[part, part], direction)
        shift = None
        if free:
            alone = np.cumsum(totals(h[part, part]))[-1:]
            shift = _Shift(total(slopes), total(turned), alone)
        return cls(total(slopes, direction), total(turned, direction), shift)

    @classmethod
    def alone(
        cls, grid: Grid, weight: F32, codes: U8, errors: F32, group: int | slice, kernels: Kernels, free: bool
    ) -> _Normal:
        """Return those of columns without what they have in common: errors [..., n, rows] under weights [..., n, 1]."""
        direction = _direction(grid, codes, group)
        weighted, shift = weight * direction, None
        if free:
            by_bias = _added(weight * errors, kernels.totals)
            shift = _Shift(by_bias, _added(weighted, kernels.totals), _added(weight, kernels.totals))
        return cls(_added(weighted, kernels.totals, errors), _added(weighted, kernels.totals, direction), shift)

    def best(self, grid: Grid, choices: Choices, rows: slice, group: int | slice) -> _Best:
        """Return the storable neighbours of the optimum that lower the loss most; no gain where none does."""
        scale, bias = grid.scale[group], None if grid.bias is None else grid.bias[group]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ds, db = self._steps()
            wanted, shifted = (scale + ds).astype(np.float32), None if bias is None else (bias + db).astype(np.float32)
        known = np.isfinite(wanted) if shifted is None else np.isfinite(wanted) & np.isfinite(shifted)
        # All candidates at once: the arrays are short, and numpy's calls would take longer than its arithmetic.
        scales = np.stack(choices.scale(np.where(known, wanted, scale), rows, group))
        ds, usable = scales.astype(np.float64) - scale, known & np.isfinite(scales)
        gain = 2 * ds * self.by_scale - ds * ds * self.scale_scale
        best = _Best(scale.copy(), None if bias is None else bias.copy(), np.zeros(scale.shape))
        if self.shift is None:
            for candidate, own, possible in zip(scales, gain, usable, strict=True):
                best.take(candidate, None, own, possible)
            return best
        assert bias is not None
        assert choices.bias is not None
        by_bias, scale_bias, bias_bias = self.shift.by_bias, self.shift.scale_bias, self.shift.bias_bias
        # The best bias depends on the scale: solve again for the scale that is stored.
        moved = bias + (by_bias - ds * scale_bias) / bias_bias
        usable &= np.isfinite(moved)
        biases = np.stack(choices.bias(np.where(usable, moved, bias).astype(np.float32), rows, group))
        db = biases.astype(np.float64) - bias
        gains = gain + (2 * db * by_bias - 2 * ds * db * scale_bias - db * db * bias_bias)
        for number, candidate in enumerate(scales):
            for offset, own in zip(biases[:, number], gains[:, number], strict=True):
                best.take(candidate, offset, own, usable[number])
        return best

    def _steps(self) -> tuple[F64, F64]:
        """From the present scale and bias to the optimum."""
        if self.shift is None:
            return self.by_scale / self.scale_scale, np.zeros_like(self.by_scale)
        by_bias, scale_bias, bias_bias = self.shift.by_bias, self.shift.scale_bias, self.shift.bias_bias
        determinant = self.scale_scale * bias_bias - scale_bias**2
        return (
            (self.by_scale * bias_bias - by_bias * scale_bias) / determinant,
            (by_bias * self.scale_scale - self.by_scale * scale_bias) / determinant,
        )


def _free(grid: Grid, choices: Choices) -> bool:
    """Whether a bias can be chosen beside the scale."""
    return grid.bias is not None and choices.bias is not None


def _direction(grid: Grid, codes: U8, group: int | slice) -> F32:
    """By how much values [..., n, rows] change with the scale of their group."""
    direction: F32 = codes + grid.table[0] if grid.even else grid.table[codes]
    if grid.zero is not None:
        direction -= _of(grid.zero, group)
    return direction


def _added(x: F32, total: Totals, y: F32 | None = None) -> F64:
    """The sums of the columns of x, or of x times y, each [n, m] or [groups, n, m]: float64 [m] or [groups, m]."""
    if x.ndim == 2:
        return total(x, y)
    return np.stack([total(own, None if y is None else y[k]) for k, own in enumerate(x)])


__all__ = ["BLOCK", "Grid", "feedback", "improve", "settle"]
