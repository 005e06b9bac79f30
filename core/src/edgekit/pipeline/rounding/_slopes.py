"""Slopes of the rounding loss, exact: products of the moment and the errors as integers of 13 bits.

A slope only says which level is nearest to a column's best value, and in which direction a scale should move: it needs
no 24 bits. Columns are divided by the root of their moment, so that H becomes a matrix of correlations, all between -1
and 1, and one scale serves all of it; the errors, multiplied by the same roots, get one scale for each row of weights.
"""

from __future__ import annotations

import attrs
import numpy as np

from edgekit.pipeline.rounding._kernels import MOST, Kernels
from edgekit.typing import F32, I16

#: Largest magnitude of the errors at first; they may double before they are cut off.
_FIRST = MOST // 2
#: Columns that are converted at once: they stay in a cache.
_BLOCK = 32


@attrs.frozen(eq=False)
class Correlation:
    """A moment as integers: ``h[i, j] = root[i] * root[j] * values[i, j] / MOST``.

    Attributes:
        values: int16 [cols, cols], and a column of zeros if the number is odd.
        root: roots of the moment's diagonal, float32 [cols].
    """

    values: I16
    root: F32

    @classmethod
    def of(cls, h: F32) -> Correlation:
        """Return that of a damped moment, float32 [cols, cols]."""
        cols, root = len(h), np.sqrt(np.einsum("ii->i", h))
        inverse = np.float32(1) / root
        values = np.zeros((cols, cols + cols % 2), np.int16)
        for row in range(cols):
            values[row, :cols] = np.rint(h[row] * inverse * (inverse[row] * np.float32(MOST)))
        return cls(values, root)


@attrs.frozen(eq=False)
class Slopes:
    """Half the negative derivatives of the loss by the values of some rows of weights: H times their errors.

    Attributes:
        correlation: of the columns.
        values: the errors times the roots of the columns' moments, int16 [rows, cols], in units.
        unit, inverse: of each row, float32 [rows].
        kernels: the arithmetic.
    """

    correlation: Correlation
    values: I16
    unit: F32
    inverse: F32
    kernels: Kernels

    @classmethod
    def of(cls, correlation: Correlation, errors: F32, kernels: Kernels) -> Slopes:
        """Return those of errors, float32 [cols, rows]."""
        blocks = [slice(start, min(start + _BLOCK, len(errors))) for start in range(0, len(errors), _BLOCK)]
        parts = [kernels.largest(errors[block] * correlation.root[block, None], 0) for block in blocks]
        largest: F32 = np.max(parts, axis=0)
        used = largest > 0
        inverse = np.where(used, np.float32(_FIRST) / np.where(used, largest, np.float32(1)), np.float32(0))
        values = np.zeros((errors.shape[1], correlation.values.shape[1]), np.int16)
        slopes = cls(correlation, values, largest / np.float32(_FIRST), inverse, kernels)
        for block in blocks:
            slopes.change(block, errors)
        return slopes

    def change(self, part: slice, errors: F32) -> None:
        """Take the errors, float32 [cols, rows], of some columns."""
        self.kernels.units(self.values[:, part], errors[part], self.correlation.root[part], self.inverse)

    def __call__(self, part: slice) -> F32:
        """Return the slopes of some columns, float32 [n, rows]."""
        found = np.zeros((len(self.values), part.stop - part.start), np.float32)
        self.kernels.multiply(found, self.values, self.correlation.values[part])
        slopes = np.ascontiguousarray(found.T)
        self.kernels.scale(slopes, self.correlation.root[part] / np.float32(MOST), self.unit)
        return slopes


__all__ = ["Correlation", "Slopes"]
