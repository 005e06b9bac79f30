"""Matrix products for rounding with feedback, summed in a fixed order so that every machine gets the same bits.

BLAS sums in an order that depends on the processor and on the number of threads, and a target midway between two levels
can then be rounded either way. Here every sum is computed term by term, with each product and each sum rounded once:
numpy's elementwise operations do so by definition, and a plugin's kernel must do the same.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.typing import Array

#: Elements of the result that are computed at once: 256 KiB of float32 fit in a processor's cache.
_CHUNK = 1 << 16


class Accumulate(Protocol):
    """A kernel that adds a matrix product to an array in place, summing in a fixed order."""

    def __call__(self, out: Array, b: Array, a: Array) -> None:
        """Add ``b[i, n] * a[i, m]`` to ``out[n, m]`` for i = 0, 1, … k - 1 in this order.

        Args:
            out: float32 or float64 [n, m]; each row is contiguous, the rows may have any stride.
            b: [k, n], of the same dtype, any strides.
            a: [k, m], of the same dtype; each row is contiguous, the rows may have any stride.
        """
        ...


def accumulate(out: Array, b: Array, a: Array) -> None:
    """Add ``b^T a`` to `out` in place, term by term: the numpy reference of `Accumulate`."""
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
