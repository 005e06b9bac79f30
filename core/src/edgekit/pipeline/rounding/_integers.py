"""Products of inputs and weights, exact: operands of 13 bits, whose products any order of summation adds up alike.

The forward pass and the moments are most of the work, and need no 24 bits: each row gets a scale, its largest magnitude
becomes `MOST`, and the products of `PIECE` columns add up below 2**31. Such a sum is exact in 32-bit integers, and in
float64 whatever the order in which BLAS takes it. The sums of the pieces are added in float32, one after another.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

import attrs
import numpy as np

from edgekit.pipeline.rounding._kernels import MOST, Kernels
from edgekit.typing import F32, I16, U8, Array

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Rows that one thread works on.
ROWS = 1024
#: Bytes from which memory is used again: the C library keeps smaller pieces itself.
_LARGE = 1 << 22
#: Arrays whose memory is kept at most.
_MOST_KEPT = 12
#: Rows that are turned at once: they stay in a cache.
_TURNED = 256
#: Columns of a symmetric product, and rows of another, that one thread computes.
_COLUMNS, _MEANS = 128, 384
#: Rows whose largest magnitude is below are zeros.
_TINY = np.float32(1e-30)


@attrs.frozen(eq=False)
class Scratch:
    """Memory of large arrays that is used again, since the system clears every page that it hands out anew.

    An array's memory is used again when no array refers to it any more. Only one thread may ask for arrays.
    """

    _kept: list[U8] = attrs.field(factory=list, init=False, repr=False)

    def array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        """Return an array with any values."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        for place in range(len(self._kept)):
            # 2: the list's reference, and the call's own
            if self._kept[place].nbytes == nbytes and sys.getrefcount(self._kept[place]) == 2:
                return self._kept[place].view(dtype).reshape(shape)
        if nbytes >= _LARGE and len(self._kept) < _MOST_KEPT:
            self._kept.append(np.empty(nbytes, np.uint8))
            return self._kept[-1].view(dtype).reshape(shape)
        return np.empty(shape, dtype)

    def clear(self) -> None:
        """Keep no memory any more."""
        self._kept.clear()


@attrs.frozen(eq=False)
class Integers:
    """A matrix as integers under a scale for each row.

    Attributes:
        values: int16 [rows, cols], magnitudes up to `MOST`; an odd number of columns is filled up with zeros.
        scale: float32 [rows]; NaN where a row is not finite.
    """

    values: I16
    scale: F32

    @classmethod
    def of_rows(cls, x: F32, kernels: Kernels, pool: Executor | None = None) -> Integers:
        """The rows of x [rows, cols]."""
        cols = x.shape[1]
        values = np.empty((len(x), cols + cols % 2), np.int16)
        values[:, cols:] = 0
        scale = np.empty(len(x), np.float32)

        def part(start: int) -> None:
            rows = slice(start, start + ROWS // 4)
            scale[rows], inverse = _scales(kernels.largest(x[rows], 1))
            kernels.narrow(values[rows, :cols], x[rows], inverse)

        spread_out(pool, part, range(0, len(x), ROWS // 4))
        return cls(values, scale)

    @classmethod
    def of_columns(
        cls, x: F32, kernels: Kernels, pool: Executor | None = None, scratch: Scratch | None = None
    ) -> Integers:
        """The columns of x [rows, cols]: values [cols, rows], scale [cols]; `scratch` gives the memory."""
        starts = range(0, len(x), _TURNED)
        parts = spread_out(pool, lambda start: kernels.largest(x[start : start + _TURNED], 0), starts)
        scale, inverse = _scales(np.max(parts, axis=0))
        values = (scratch or Scratch()).array((x.shape[1], len(x) + len(x) % 2), np.int16)
        # Two rows are turned as the halves of one word; which half is which does not matter to a sum.
        words = values.view(np.int32)

        def turn(start: int) -> None:
            rows = x[start : start + _TURNED]
            kernels.turn(words[:, start // 2 : (start + len(rows) + 1) // 2], rows, inverse)

        spread_out(pool, turn, starts)
        return cls(values, scale)


def _scales(largest: F32) -> tuple[F32, F32]:
    """What a unit stands for, and its inverse; the inverse of what is not finite is 0, and so are the integers."""
    finite = np.isfinite(largest)
    used = finite & (largest > _TINY)
    kept = np.where(used, largest, np.float32(1))
    scale = np.where(used, kept / np.float32(MOST), np.float32(0))
    return np.where(finite, scale, np.float32(np.nan)), np.where(used, np.float32(MOST) / kept, np.float32(0))


def product(
    b: Integers, a: Integers, kernels: Kernels, pool: Executor | None = None, scratch: Scratch | None = None
) -> F32:
    """``b a^T``, float32 [rows of b, rows of a]; `scratch` gives the memory."""
    out: F32 = (scratch or Scratch()).array((len(b.values), len(a.values)), np.float32)

    def part(start: int) -> None:
        stop = min(start + ROWS, len(out))
        out[start:stop] = 0
        kernels.multiply(out[start:stop], b.values[start:stop], a.values)
        kernels.scale(out[start:stop], b.scale[start:stop], a.scale)

    spread_out(pool, part, range(0, len(out), ROWS))
    return out


def mean_product(a: Integers, b: Integers, count: int, kernels: Kernels, pool: Executor | None = None) -> F32:
    """``a b^T / count`` of columns [cols, tokens], float32 [cols, cols].

    If both are the same, the result is symmetric and half of it is computed.
    """
    cols, same = len(a.values), a is b
    mean = np.zeros((cols, len(b.values)), np.float32)

    def part(start: int) -> None:
        # Below the diagonal few columns at a time: the kernel copies them once for all rows.
        stop = start + (_COLUMNS if same else _MEANS)
        rows, columns = (slice(start, None), slice(start, stop)) if same else (slice(start, stop), slice(None))
        kernels.multiply(mean[rows, columns], a.values[rows], b.values[columns])
        mean[rows, columns] *= a.scale[rows, None] * b.scale[columns]

    spread_out(pool, part, range(0, cols, _COLUMNS if same else _MEANS))
    for start in range(0, cols if same else 0, _COLUMNS):
        stop = start + _COLUMNS
        mean[start:stop, stop:] = mean[stop:, start:stop].T
    mean /= np.float32(count)
    return mean


def spread_out(pool: Executor | None, function: Callable[[_T], _R], given: Iterable[_T]) -> list[_R]:
    """The results of a function, on the threads of a pool."""
    return list(map(function, given) if pool is None else pool.map(function, given))


__all__ = ["Integers", "Scratch", "mean_product", "product", "spread_out"]
