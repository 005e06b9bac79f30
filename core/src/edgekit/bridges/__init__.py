"""Lossless bridges: if two formats can represent the same values, codes are converted without quantizing again.

Many formats are lattices: evenly spaced levels, a scale (and an offset) for each group of a row. Others are small
floats under a scale. `read` converts such a tensor to a `Lattice` or to `Minifloats`, `write` stores one in
a format, and `relation` returns, for any ordered pair of formats, whether the conversion is exact, exact for some
tensors, within a bound, or impossible. An exact conversion by `transcode` is verified: the decoded values of both
tensors are equal bit by bit.
"""

from __future__ import annotations

from edgekit.bridges._carried import carried_over, first_exact
from edgekit.bridges._lattice import Carry, Lattice, Minifloats, Relation
from edgekit.bridges._levels import Levels, has_levels, levels, recoded
from edgekit.bridges._read import read
from edgekit.bridges._relation import lattices, relation
from edgekit.bridges._scales import Choices, choices, rescaled
from edgekit.bridges._transcode import transcode
from edgekit.bridges._write import write

__all__ = [
    "Carry",
    "Choices",
    "Lattice",
    "Levels",
    "Minifloats",
    "Relation",
    "carried_over",
    "choices",
    "first_exact",
    "has_levels",
    "lattices",
    "levels",
    "read",
    "recoded",
    "relation",
    "rescaled",
    "transcode",
    "write",
]
