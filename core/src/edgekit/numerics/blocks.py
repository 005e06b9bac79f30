"""Views of rows as groups, and chunks of rows that fit the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.numerics.smallfloats import as_float32
from edgekit.typing import F32, Array

#: Elements of a chunk: 256 KiB of float32, so that the temporaries of an encoder stay in the L2 cache.
CHUNK = 1 << 16
#: Largest width at which `extremes` reduces a transposed copy.
_NARROW = 128


def groups(x: Array, size: int) -> Array:
    """View rows [rows, cols] as [rows, cols // size, size]; cols must be a multiple of `size`."""
    return x.reshape(x.shape[0], -1, size)


def row_chunks(rows: int, cols: int, elements: int = CHUNK) -> Iterator[slice]:
    """Yield slices of whole rows of about `elements` elements, at least one row each."""
    step = max(1, elements // max(1, cols))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def spans(cols: int, size: int | None) -> Iterator[tuple[slice, slice, int]]:
    """Yield (columns, groups, width of a group) for the whole groups of a row, then for a shorter last one.

    A `size` of None, or larger than the row, makes the row one group.
    """
    width = min(size or cols, cols)
    whole, rest = divmod(cols, width)
    yield slice(0, whole * width), slice(0, whole), width
    if rest:
        yield slice(whole * width, cols), slice(whole, whole + 1), rest


def reduce_groups(ufunc: np.ufunc, groups: Array) -> Array:
    """Reduce contiguous groups [n, size] to [n, 1]: ``ufunc.reduce`` over the last axis, faster for short groups."""
    count, size = groups.shape
    return ufunc.reduceat(groups.reshape(-1), np.arange(0, count * size, size))[:, None]


def extent(x: Array) -> tuple[F32, F32]:
    """Return the smallest and the largest value of rows [rows, cols], each float32 [1, 1]; works in pieces."""
    ends = [(piece.min(), piece.max()) for piece in (as_float32(x[chunk]) for chunk in row_chunks(*x.shape))]
    least, largest = zip(*ends, strict=True)
    return np.reshape(min(least), (1, 1)), np.reshape(max(largest), (1, 1))


def extremes(blocks: Array) -> tuple[Array, Array]:
    """Return minimum and maximum over the last axis. If zeros of both signs occur, either may be returned."""
    width = blocks.shape[-1]
    if width > _NARROW:
        return blocks.min(axis=-1), blocks.max(axis=-1)
    # numpy reduces short rows one by one; over a transposed copy both reductions are long and vectorised.
    turned = np.ascontiguousarray(blocks.reshape(-1, width).T)
    return turned.min(axis=0).reshape(blocks.shape[:-1]), turned.max(axis=0).reshape(blocks.shape[:-1])


__all__ = ["CHUNK", "extent", "extremes", "groups", "reduce_groups", "row_chunks", "spans"]
