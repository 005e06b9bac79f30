"""Lossless bridges: where two formats can hold the same values, codes are carried over, never quantized again.

Many formats are lattices: evenly spaced levels, a scale (and an offset) for each group of a row. Others are small
floats under a scale. `read` takes such a format apart into a `Lattice` or into `Minifloats`, `write` puts one together,
and `relation` says beforehand, for any ordered pair, whether the codes carry over exactly, where the tensor at hand
allows it, within a bound, or not at all. Whatever `transcode` calls exact it has
compared: the decoded values of both sides are equal, 0 ULP.
"""

from __future__ import annotations

from edgekit.bridges._carried import carried_over
from edgekit.bridges._lattice import Carry, Lattice, Minifloats, Relation
from edgekit.bridges._read import read
from edgekit.bridges._relation import lattices, relation
from edgekit.bridges._transcode import transcode
from edgekit.bridges._write import write

__all__ = [
    "Carry",
    "Lattice",
    "Minifloats",
    "Relation",
    "carried_over",
    "lattices",
    "read",
    "relation",
    "transcode",
    "write",
]
