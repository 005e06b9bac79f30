"""The arithmetic of rounding with feedback: products whose sums have one order, on every machine.

BLAS sums in an order that depends on the processor and on the number of threads, and a code that lies near the middle
of two levels can fall either way. Here every sum is taken term by term, each product and each sum rounded once: numpy's
elementwise operations do so by definition, and a plugin's kernel that does the same gives the same bits.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.typing import Array

#: Elements that are summed up at once: 256 KiB of float32 stay in a cache.
_CHUNK = 1 << 16


class Accumulate(Protocol):
    """Adds a product to an array, in place."""

    def __call__(self, out: Array, b: Array, a: Array) -> None:
        """``out[n, m] += b[0, n] * a[0, m]``, then that of row 1, and so on: k sums for each element, in order.

        Args:
            out: [n, m], float32 or float64; rows may be apart, elements of a row may not.
            b: [k, n], of the same type, any strides.
            a: [k, m], of the same type; rows may be apart.
        """
        ...


def accumulate(out: Array, b: Array, a: Array) -> None:
    """The reference of `Accumulate`."""
    n, m = out.shape
    step = max(256, _CHUNK // max(1, n))
    factors = np.ascontiguousarray(b)[:, :, None]
    for start in range(0, m, step):
        piece, rows = out[:, start : start + step], a[:, start : start + step]
        product: npt.NDArray[np.floating] = np.empty_like(piece)
        for k in range(len(a)):
            np.multiply(factors[k], rows[k], out=product)
            piece += product


__all__ = ["Accumulate", "accumulate"]
