"""The neighbours on the grids of IQ2 and IQ3 as the kernels read them; they are made when a type is first encoded."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.reference.ggml import iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs

#: The module of each type in the reference, which states its search.
TYPES: dict[str, ModuleType] = {
    "IQ3_S": iq3_s,
    "IQ3_XXS": iq3_xxs,
    "IQ2_S": iq2_s,
    "IQ2_XS": iq2_xs,
    "IQ2_XXS": iq2_xxs,
}


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
    points = TYPES[kind].SEARCH.points
    shifts = points.bits * np.arange(points.dimensions)
    at = (points.codes.astype(np.int64) << shifts).sum(axis=1)
    chunks = -(-points.count // lanes)
    places = np.stack([np.where(chunks > 0, np.cumsum(chunks) - chunks, points.index), chunks], axis=1)
    within = np.arange(lanes) + lanes * np.arange(chunks.max())[:, None]
    some = np.flatnonzero(chunks)
    spread = np.where(within.ravel() < points.count[some, None], within.ravel(), 0)  # [places, most]
    kept = (within[:, 0] < points.count[some, None]).repeat(lanes, axis=1)
    chosen = points.neighbours[(points.first[some, None] + spread)[kept]].reshape(-1, lanes)
    levels = (2 * points.codes[chosen] + 1).astype(np.int8).swapaxes(1, 2)
    return Tables(places.astype(np.int32), np.ascontiguousarray(levels), at[chosen].astype(np.uint16))


__all__ = ["TYPES", "Tables", "tables"]
