"""Views of rows as groups, and the cache-sized chunks in which rows are worked through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.numerics.smallfloats import as_float32
from edgekit.typing import F32, Array

#: Elements worked on at once: 256 KiB of float32, so that the temporaries of an encoder stay in the L2 cache.
CHUNK = 1 << 16
#: Up to this width `extremes` works on a transposed copy.
_NARROW = 128


def groups(x: Array, size: int) -> Array:
    """View rows [rows, cols] as [rows, cols // size, size]; cols must be a multiple of `size`."""
    return x.reshape(x.shape[0], -1, size)


def row_chunks(rows: int, cols: int, elements: int = CHUNK) -> Iterator[slice]:
    """Slices of whole rows of about `elements` elements each; at least one row a slice."""
    step = max(1, elements // max(1, cols))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def spans(cols: int, size: int | None) -> Iterator[tuple[slice, slice, int]]:
    """The columns of a row's whole groups, then of its ragged last one: (columns, groups, width of a group).

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
    """The least and the largest of all values of rows [rows, cols], each float32 [1, 1], piece by piece."""
    ends = [(piece.min(), piece.max()) for piece in (as_float32(x[chunk]) for chunk in row_chunks(*x.shape))]
    least, largest = zip(*ends, strict=True)
    return np.reshape(min(least), (1, 1)), np.reshape(max(largest), (1, 1))


def extremes(blocks: Array) -> tuple[Array, Array]:
    """Minimum and maximum over the last axis. Which zero comes out where both signs occur is not said."""
    width = blocks.shape[-1]
    if width > _NARROW:
        return blocks.min(axis=-1), blocks.max(axis=-1)
    # Reducing many short rows costs a loop each; one transposed copy makes both reductions long and vectorised.
    turned = np.ascontiguousarray(blocks.reshape(-1, width).T)
    return turned.min(axis=0).reshape(blocks.shape[:-1]), turned.max(axis=0).reshape(blocks.shape[:-1])


__all__ = ["CHUNK", "extent", "extremes", "groups", "reduce_groups", "row_chunks", "spans"]
