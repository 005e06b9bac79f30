"""What bridges carry: codes, a scale and an offset for each group."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I16 = npt.NDArray[np.int16]
U8 = npt.NDArray[np.uint8]


class Carry(enum.StrEnum):
    """Whether codes carry over from one format to another."""

    EXACT = "exact"
    CONDITIONAL = "conditional"  # exactly, where the values of the tensor at hand allow it
    BOUNDED = "bounded"  # exactly where no scale is rounded, else within a bound
    NO = "no"


@attrs.frozen
class Relation:
    """What is declared of an ordered pair of formats.

    Attributes:
        carry: exactly, where the tensor at hand allows it, within a bound, or not at all.
        why: the condition under which it is exact, the bound, or what stands in the way.
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
        zero: [rows, groups], the code that means 0; None where the offset is real.
        bias: [rows, groups]; None where the offset is an integer.
        group: columns that share a scale.
    """

    codes: U8
    scale: F32
    group: int
    zero: I16 | None = None
    bias: F32 | None = None

    def regrouped(self, group: int) -> Lattice | None:
        """The same levels for groups of another size; None where neighbours that would share a scale differ."""
        if self.group % group == 0:
            return self._each(group, lambda part: np.repeat(part, self.group // group, axis=1))
        if group % self.group or self.codes.shape[1] % group:
            return None
        return self._merged(group, group // self.group)

    def _merged(self, group: int, count: int) -> Lattice | None:
        for part in (self.scale, self.zero, self.bias):
            if part is not None:
                together = part.reshape(len(part), -1, count)
                if (together != together[..., :1]).any():
                    return None
        return self._each(group, lambda part: part[:, ::count])

    def _each(self, group: int, change: Callable[[Any], Any]) -> Lattice:
        zero = None if self.zero is None else change(self.zero)
        bias = None if self.bias is None else change(self.bias)
        return Lattice(self.codes, change(self.scale), group, zero, bias)


@attrs.frozen(eq=False)
class Minifloats:
    """Microscaling: small floats with one power of two for each group of 32.

    Attributes:
        codes: [rows, cols], float4_e2m1fn or float8_e4m3fn patterns.
        exponents: [rows, groups], float8_e8m0fnu patterns.
        bits: 4 or 8.
    """

    codes: U8
    exponents: U8
    bits: int
