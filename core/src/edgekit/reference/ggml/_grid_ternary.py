"""What IQ1_S and IQ1_M share: three levels, shifted up or down by an eighth, in groups of 8 from one grid.

    levels with shift +1    -0.875    0.125    1.125
    levels with shift -1    -1.125   -0.125    0.875

The elements of a sub-block are sorted; every way of cutting them into three runs, for the three levels, is tried with
every shift, and the scale is fitted by weighted least squares. Groups that are off the grid are moved to a neighbour,
and the scale is fitted again.

Elements that are equal stay in order, as glibc's ``qsort`` leaves them (a merge sort, up to glibc 2.36 and from 2.38).

Source: ggml 0.25.3, ``quantize_row_iq1_s_impl`` and ``quantize_row_iq1_m_impl``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._grids import Grid, grid
from edgekit.typing import F32, U8, Bools, Indices, Ints

#: The levels of each code with shift +1 and with shift -1.
LEVELS = np.array([[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]], np.float32)
TOP = 7
_HALF = np.float32(0.5)


def points() -> Grid:
    """Return the grid of both types."""
    return grid("IQ1_S", 2, 3, 3)


class Sorted(NamedTuple):
    """The elements of sub-blocks in ascending order.

    Attributes:
        order: place of each element before it was sorted, [n, sub-blocks].
        x: elements, [n, sub-blocks].
        weights: theirs, [n, sub-blocks].
    """

    order: Indices
    x: F32
    weights: F32

    @classmethod
    def of(cls, x: F32, weights: F32) -> Sorted:
        """Sort the elements of columns."""
        order = np.argsort(x, axis=0, kind="stable")
        return cls(order, np.take_along_axis(x, order, axis=0), np.take_along_axis(weights, order, axis=0))


def cuts(count: int) -> Iterator[tuple[int, int]]:
    """Yield where so many elements can be cut in three, in ggml's order."""
    for first in range(count + 1):
        for second in range(first, count + 1):
            yield first, second


class Cut(NamedTuple):
    """The best cuts so far.

    Attributes:
        scale: of each sub-block, [sub-blocks].
        score: how much it explains, [sub-blocks].
        first: elements with code 0, [sub-blocks].
        second: elements with code 0 or 1, [sub-blocks].
        shift: number of the shift, or of the pair of shifts, [sub-blocks]; -1 where no cut was possible.
    """

    scale: F32
    score: F32
    first: Indices
    second: Indices
    shift: Indices

    @classmethod
    def none(cls, count: int) -> Cut:
        """No cut of so many sub-blocks."""
        lowest = np.full(count, -np.finfo(np.float32).max, np.float32)
        first, second, shift = np.zeros(count, np.intp), np.zeros(count, np.intp), np.full(count, -1, np.intp)
        return cls(np.zeros(count, np.float32), lowest, first, second, shift)

    def consider(self, sum_qx: F32, sum_q2: F32, first: int, second: int, shift: int) -> None:
        """Take a cut where it is better, in place."""
        better = np.flatnonzero((sum_q2 > 0) & (sum_qx * sum_qx > self.score * sum_q2))
        if not better.size:
            return
        scale = sum_qx[better] / sum_q2[better]
        self.scale[better], self.score[better] = scale, scale * sum_qx[better]
        self.first[better], self.second[better], self.shift[better] = first, second, shift


def codes_of(cut: Cut, order: Indices) -> U8:
    """Return the codes [n, sub-blocks] of a cut, inverted where its scale is negative."""
    number = np.arange(len(order))[:, None]
    ranked = (number >= cut.first).astype(np.uint8) + (number >= cut.second).astype(np.uint8)
    codes = np.empty_like(ranked)
    np.put_along_axis(codes, order, ranked, axis=0)
    return np.where(cut.scale < 0, np.uint8(2) - codes, codes)


class OnGrid(NamedTuple):
    """Sub-blocks whose groups are on the grid: scales, points [groups, sub-blocks], and where ggml aborts."""

    scale: F32
    point: Indices
    lost: Bools


def onto_grid(x: F32, weights: F32, codes: U8, scale: F32, shifts: Ints) -> OnGrid:
    """Move groups onto the grid and fit the scale again where one was off it.

    Args:
        x: elements, columns [n, sub-blocks].
        weights: of the squared errors, [n, sub-blocks].
        codes: [n, sub-blocks].
        scale: not negative, [sub-blocks].
        shifts: 0 or 1, a row of `LEVELS` for each group, [groups, sub-blocks].
    """
    known, shape = points(), (-1, 8, x.shape[1])
    places = known.places(codes.reshape(shape).swapaxes(0, 1))
    index = known.index[places].astype(np.intp)
    group, block = np.nonzero(index < 0)
    some, heavy = (np.ascontiguousarray(v.reshape(shape)[group, :, block].T) for v in (x, weights))
    levels = np.ascontiguousarray(LEVELS[shifts[group, block]].T)
    snapped = known.snap(places[group, block], some, heavy, scale[block], levels)
    off, lost = (index < 0).any(axis=0), np.zeros(x.shape[1], np.bool_)
    index[group, block] = snapped.point
    lost[block[~snapped.found]] = True
    sum_qx, sum_q2 = fitted(x, weights, levels_of(index, shifts))
    scale = np.where(off & (sum_qx > 0) & (sum_q2 > 0), sum_qx / sum_q2, scale)
    return OnGrid(scale, index, lost | np.isnan(scale))


def levels_of(index: Indices, shifts: Ints) -> F32:
    """Return the levels [n, sub-blocks] of points [groups, sub-blocks] under their shifts."""
    levels: F32 = LEVELS[shifts[..., None], points().codes[index]].swapaxes(1, 2)
    return levels.reshape(-1, index.shape[1])


def fitted(x: F32, weights: F32, levels: F32) -> tuple[F32, F32]:
    """Return the weighted sums [sub-blocks] of level * x and of level², added one element after the other."""
    sum_qx, sum_q2 = (np.zeros(x.shape[1], np.float32) for _ in range(2))
    for w, q, v in zip(weights, levels, x, strict=True):
        wq = w * q
        sum_qx += wq * v
        sum_q2 += wq * q
    return sum_qx, sum_q2


def scale_codes(scales: F32, d: F32) -> U8:
    """Return the codes c of scales [blocks, n], which stand for ``d * (2c + 1)``: uint8, 0 to 7."""
    inverse = np.float32(1) / d
    codes = np.clip(nearest_int(_HALF * (inverse[:, None] * scales - np.float32(1))), 0, TOP)
    return codes.astype(np.uint8)
