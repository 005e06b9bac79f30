"""Arrays of bytes that are used again: what a conversion reads and encodes has the same few sizes all the time.

An allocator may give memory back to the system whenever an array of more than 128 KiB is freed, and the system gives
it out anew page by page, zeroed. glibc's does in the workers of Dask, which set `MALLOC_TRIM_THRESHOLD_`; it took a
third of the time in which they encode.
"""

from __future__ import annotations

import sys
import threading
from collections import deque

import numpy as np

from edgekit.typing import U8

#: Bytes of the arrays that are kept, and how many each thread keeps.
SMALLEST, LARGEST, KEPT = 1 << 16, 1 << 21, 3


class _Kept(threading.local):
    """The last arrays of a thread, in use or not."""

    def __init__(self) -> None:
        self.arrays: deque[U8] = deque(maxlen=KEPT)


_KEPT = _Kept()


def _references(array: U8) -> int:
    return sys.getrefcount(array)


def uninitialized(nbytes: int) -> U8:
    """Return an array of so many bytes, with whatever values; from any thread.

    It is a view of one that this thread keeps, if nothing refers to that one any more: no view, no buffer, no array.

    Raises:
        MemoryError: there is no room for it.
    """
    if not SMALLEST <= nbytes <= LARGEST:
        return np.empty(nbytes, np.uint8)
    arrays = _KEPT.arrays
    for index in range(len(arrays)):
        if arrays[index].nbytes == nbytes and _references(arrays[index]) == _UNUSED:
            return arrays[index][:]
    arrays.append(np.empty(nbytes, np.uint8))
    return arrays[-1][:]


def _count_unused() -> int:
    """Return the references that are counted of an array to which nothing but a deque refers; CPython counts calls'."""
    alone: deque[U8] = deque([np.empty(0, np.uint8)])
    return _references(alone[0])


_UNUSED = _count_unused()


__all__ = ["KEPT", "LARGEST", "SMALLEST", "uninitialized"]
