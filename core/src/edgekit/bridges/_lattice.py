"""The intermediate forms of bridges: codes with a scale and an offset for each group."""

from __future__ import annotations

import enum

import attrs
import numpy as np

from edgekit.typing import F32, I16, U8, Array


class Carry(enum.StrEnum):
    """Whether codes can be converted from one format to another."""

    EXACT = "exact"
    CONDITIONAL = "conditional"  # exactly, if the tensor's values allow it
    BOUNDED = "bounded"  # exactly if no scale is rounded, else within a bound
    NO = "no"


@attrs.frozen
class Relation:
    """The relation of an ordered pair of formats.

    Attributes:
        carry: exactly, exactly for some tensors, within a bound, or not at all.
        why: the condition under which it is exact, the bound, or the reason why it is impossible.
    """

    source: str
    target: str
    carry: Carry
    why: str


@attrs.frozen(eq=False)
class Lattice:
    """Evenly spaced levels: ``scale * (code - zero)``, or ``scale * code + bias``, in float32.

    Attributes:
        codes: [rows, cols].
        scale: [rows, groups]; may be negative.
        zero: [rows, groups], the code of the value 0; None if the offset is real.
        bias: [rows, groups]; None if the offset is an integer.
        group: columns that share a scale.
    """

    codes: U8
    scale: F32
    group: int
    zero: I16 | None = None
    bias: F32 | None = None

    def regrouped(self, group: int) -> Lattice | None:
        """Return the same levels with another group size; None if groups that would be merged differ.

        The last group of a row may be shorter, before and after.
        """
        group_of_column = np.arange(self.codes.shape[1]) // self.group
        first = group_of_column[::group]
        if self.group % group:  # a new group may hold more than one old one
            joined = np.repeat(first, group)[: len(group_of_column)]
            at = np.flatnonzero(group_of_column != joined)
            for part in (self.scale, self.zero, self.bias):
                if part is not None and (part[:, group_of_column[at]] != part[:, joined[at]]).any():
                    return None
        zero = None if self.zero is None else self.zero[:, first]
        bias = None if self.bias is None else self.bias[:, first]
        return Lattice(self.codes, self.scale[:, first], group, zero, bias)

    def by_column(self, part: Array) -> Array:
        """Repeat a part [rows, groups] for each column: [rows, cols], or [rows, 1] for one group."""
        if part.shape[1] == 1:
            return part
        return np.repeat(part, self.group, axis=1)[:, : self.codes.shape[1]]


@attrs.frozen(eq=False)
class Minifloats:
    """Small floats with a scale for each group.

    Attributes:
        codes: [rows, cols], float4_e2m1fn or float8_e4m3fn patterns.
        scale: [rows, groups], the factor of the elements.
        group: columns that share a scale.
        bits: 4 or 8.
    """

    codes: U8
    scale: F32
    group: int
    bits: int
