"""The neighbours on the grids of IQ1 to IQ3 as the kernels read them; they are made when a type is first encoded."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.reference.ggml import iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs

#: The module of each type in the reference, which states its search.
TYPES: dict[str, ModuleType] = {
    "IQ3_S": iq3_s,
    "IQ3_XXS": iq3_xxs,
    "IQ2_S": iq2_s,
    "IQ2_XS": iq2_xs,
    "IQ2_XXS": iq2_xxs,
}
#: Those with three levels, which are shifted.
TERNARY: dict[str, ModuleType] = {"IQ1_S": iq1_s, "IQ1_M": iq1_m}


def points_of(kind: str) -> Any:
    """Return the grid of a type."""
    return TERNARY[kind].points() if kind in TERNARY else TYPES[kind].SEARCH.points


def levels_of(kind: str, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the levels of codes; those with three levels without their shift."""
    wide = codes.astype(np.int8)
    return wide - np.int8(1) if kind in TERNARY else 2 * wide + np.int8(1)


class Tables(NamedTuple):
    """The neighbours on a grid, in chunks of as many as lanes.

    Attributes:
        places: of each place its point, or its first chunk, and its number of chunks, 0 for a point: int32 [places, 2].
        levels: of the neighbours, int8 [chunks, n, lanes]; the last chunk of a place ends with its first neighbour.
        neighbours: their places, uint16 [chunks, lanes].
    """

    places: npt.NDArray[np.int32]
    levels: npt.NDArray[np.int8]
    neighbours: npt.NDArray[np.uint16]


@functools.cache
def tables(kind: str, lanes: int) -> Tables:
    """Return the tables of a type's kernel."""
    points = points_of(kind)
    shifts = points.bits * np.arange(points.dimensions)
    at = (points.codes.astype(np.int64) << shifts).sum(axis=1)
    chunks = -(-points.count // lanes)
    places = np.stack([np.where(chunks > 0, np.cumsum(chunks) - chunks, points.index), chunks], axis=1)
    within = np.arange(lanes) + lanes * np.arange(chunks.max())[:, None]
    some = np.flatnonzero(chunks)
    spread = np.where(within.ravel() < points.count[some, None], within.ravel(), 0)  # [places, most]
    kept = (within[:, 0] < points.count[some, None]).repeat(lanes, axis=1)
    chosen = points.neighbours[(points.first[some, None] + spread)[kept]].reshape(-1, lanes)
    levels = levels_of(kind, points.codes[chosen]).swapaxes(1, 2)
    return Tables(places.astype(np.int32), np.ascontiguousarray(levels), at[chosen].astype(np.uint16))


__all__ = ["TERNARY", "TYPES", "Tables", "levels_of", "points_of", "tables"]
