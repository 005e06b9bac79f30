"""Views of rows as groups, and the cache-sized chunks in which rows are worked through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

#: Elements worked on at once: 256 KiB of float32, so that the temporaries of an encoder stay in the L2 cache.
CHUNK = 1 << 16


def groups(x: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """View rows [rows, cols] as [rows, cols // size, size]; cols must be a multiple of `size`."""
    return x.reshape(x.shape[0], -1, size)


def row_chunks(rows: int, cols: int, elements: int = CHUNK) -> Iterator[slice]:
    """Slices of whole rows of about `elements` elements each; at least one row a slice."""
    step = max(1, elements // max(1, cols))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
