"""The grids of IQ1, IQ2 and IQ3: which groups of magnitudes can be stored, and what stands in for the others.

A group of 4 or 8 magnitudes is stored as the index of a point of a grid. The search first rounds each element by itself
to a code; the codes of a group make a *place*, ``sum(code[k] << bits * k)``. If the place is not a point of the grid,
the nearest points are compared: those at the least Euclidean distance from the place, and at as many next larger
distances as the type wants. They are compared by distance from the elements, in ascending order of distance from the
place and of index, and the first of equally good ones is taken.

Source: ggml 0.25.3, ``iq2xs_init_impl``, ``iq3xs_init_impl``, ``iq2_find_best_neighbour``,
``iq3_find_best_neighbour`` and ``iq1_find_best_neighbour2``.
"""

from __future__ import annotations

import base64
import functools
import zlib
from typing import NamedTuple

import attrs
import numpy as np

from edgekit.reference.ggml._grid_points import POINTS
from edgekit.typing import F32, I32, U8, Bools, Indices, Ints

_PAIRS = 1 << 18  # pairs of a group and a neighbour that are compared at a time
_LARGEST = np.finfo(np.float32).max


class Snapped(NamedTuple):
    """The points that were chosen for some groups.

    Attributes:
        point: its number, [groups].
        found: False where no distance was a finite number; ggml aborts there. [groups].
    """

    point: Indices
    found: Bools


@attrs.frozen(eq=False)
class Grid:
    """A grid.

    Attributes:
        codes: the codes of each point, uint8 [points, n]; n is 4 or 8.
        bits: width of a code.
        index: number of the point at each place; -1 where there is none. [places].
        first: where the neighbours of each place begin in `neighbours`, [places].
        count: how many neighbours each place has; 0 for points, and for places that no search reaches. [places].
        neighbours: numbers of points.
    """

    codes: U8
    bits: int
    index: I32
    first: Indices
    count: Indices
    neighbours: Indices

    @property
    def dimensions(self) -> int:
        """Elements of a group."""
        return int(self.codes.shape[1])

    def places(self, codes: Ints) -> Indices:
        """Return the places of groups from their codes [n, ...]."""
        place = np.zeros(codes.shape[1:], np.intp)
        for k, code in enumerate(codes):
            place |= code.astype(np.intp) << (self.bits * k)
        return place

    def snap(self, place: Indices, x: F32, weights: F32, scale: F32, levels: F32) -> Snapped:
        """Return the best neighbour of groups that are not on the grid.

        Args:
            place: of each group, [groups].
            x: elements, [n, groups].
            weights: of the squared errors, [n, groups].
            scale: value of a level's unit, [groups].
            levels: the level of each code, [codes] or [codes, groups].
        """
        index, found = np.zeros(len(place), np.intp), np.zeros(len(place), np.bool_)
        ends = np.cumsum(self.count[place])
        start = 0
        while start < len(place):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
            part = slice(start, stop)
            some = levels if levels.ndim == 1 else levels[:, part]
            index[part], found[part] = self._nearest(place[part], x[:, part], weights[:, part], scale[part], some)
            start = stop
        return Snapped(index, found)

    def _nearest(self, place: Indices, x: F32, weights: F32, scale: F32, levels: F32) -> Snapped:
        count = self.count[place]
        group = np.repeat(np.arange(len(place)), count)
        starts = np.cumsum(count) - count
        candidates = self.neighbours[np.arange(len(group)) + np.repeat(self.first[place] - starts, count)]
        scale, error = scale[group], np.zeros(len(group), np.float32)
        for k in range(self.dimensions):
            codes = self.codes[candidates, k]
            level = levels[codes] if levels.ndim == 1 else levels[codes, group]
            difference = scale * level - x[k, group]
            error += weights[k, group] * difference * difference
        error[np.isnan(error)] = np.inf
        least = np.minimum.reduceat(error, starts)
        best = np.flatnonzero(error == least[group])[::-1]  # of equal ones the first is assigned last
        index = np.zeros(len(place), np.intp)
        index[group[best]] = candidates[best]
        return Snapped(index, least < _LARGEST)


@functools.cache
def grid(name: str, bits: int, top: int, distances: int) -> Grid:
    """Return a grid.

    Args:
        name: the type that it was made for.
        bits: width of a code.
        top: codes run from 0 to ``top - 1``.
        distances: neighbours of a place are the points at so many smallest distances.
    """
    points, dimensions = _points(name), 16 // bits if bits == 2 else 12 // bits
    codes = _codes(points, bits, dimensions)
    index = np.full(1 << (bits * dimensions), -1, np.int32)
    index[points] = np.arange(len(points))
    places = np.flatnonzero(index < 0)
    places = places[(_codes(places, bits, dimensions) < top).all(axis=1)]
    group, neighbour = _neighbours(_codes(places, bits, dimensions), codes, distances)
    count, first = np.zeros(len(index), np.intp), np.zeros(len(index), np.intp)
    count[places] = np.bincount(group, minlength=len(places))
    first[places] = np.cumsum(count[places]) - count[places]
    return Grid(codes, bits, index, first, count, neighbour)


def _points(name: str) -> Indices:
    halves = np.frombuffer(zlib.decompress(base64.b85decode(POINTS[name])), np.uint8).reshape(2, -1)
    return np.cumsum(halves[0] + (halves[1].astype(np.intp) << 8))


def _codes(places: Indices, bits: int, dimensions: int) -> U8:
    """Return the codes [places, dimensions] of places."""
    shifts = bits * np.arange(dimensions)
    return (places[:, None] >> shifts & (1 << bits) - 1).astype(np.uint8)


def _neighbours(places: U8, points: U8, distances: int) -> tuple[Indices, Indices]:
    """Return pairs of a place and a point that is near to it, in the order in which ggml compares them."""
    a, b = places.astype(np.float32), points.astype(np.float32)  # all sums of squares are exact
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    distance = squared.astype(np.uint8)  # at most 4 * 7² = 196
    farthest = distance.min(axis=1)
    for _ in range(distances - 1):
        farther = np.where(distance > farthest[:, None], distance, np.uint8(255))
        farthest = farther.min(axis=1)
    place, point = np.nonzero(distance <= farthest[:, None])
    order = np.lexsort((distance[place, point], place))  # stable: points of equal distance stay in order
    return place[order], point[order]
