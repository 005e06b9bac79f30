"""The triangular factor of the damped moment: its rows say how the error of a column is spread over later columns.

The loss of rounding a row w to q is ``(w - q) H (w - q)^T`` with H the damped moment of its inputs. With
``H = R R^T``, R upper triangular, the loss is the sum over the columns j of ``((w - q) R)_j ** 2``, and term j depends
only on the errors of the columns up to j. So each column in turn is rounded to the level nearest to

    w_j + sum over k < j of (w_k - q_k) * R_kj / R_jj

This is GPTQ's rule, where R is the inverse of the Cholesky factor of the inverse of H; computed as here, no matrix has
to be inverted.

Source: E. Frantar et al., "GPTQ", 2022 (arXiv:2210.17323); J. Chen et al., "The Geometry of LLM Quantization: GPTQ as
Babai's Nearest Plane Algorithm", 2025 (arXiv:2507.18553), for the equivalence.
"""

from __future__ import annotations

import numpy as np

from edgekit.errors import NonFiniteError
from edgekit.pipeline.rounding._kernels import Accumulate, accumulate
from edgekit.typing import F32, F64, Indices

#: Added to the diagonal, in units of its mean.
DAMPING = 0.003
#: Rows of the factor that are computed at once, and those of them that are subtracted one by one.
_BLOCK, _INNER = 64, 8
_TRIES = 8


def damped(moment: F32, damping: float = DAMPING, *, reuse: bool = False) -> F32:
    """Return the moment, float32 [cols, cols], with `damping` times the mean of its diagonal added to the diagonal.

    Columns whose input is always 0 get 1 on the diagonal and 0 elsewhere; the mean leaves them out. `reuse` stores it
    in place of the moment.

    Raises:
        NonFiniteError: a value of the moment is not finite.
    """
    if not np.isfinite(moment).all():
        raise NonFiniteError("the moment holds values that are not finite; calibrate on the unquantized model")
    h = moment if reuse else moment.astype(np.float32, copy=True)
    diagonal = np.einsum("ii->i", h)
    used = diagonal > 0
    mean = float(np.add.reduce(diagonal[used], dtype=np.float64)) / max(1, int(np.count_nonzero(used)))
    diagonal[used] += np.float32(damping * mean)
    h[~used] = 0
    h[:, ~used] = 0
    diagonal[~used] = 1
    return h


def upper_factor(h: F32, accumulate: Accumulate = accumulate) -> F64:
    """Return the upper triangular R with ``R R^T = h``, float64 [cols, cols], stored by columns.

    Args:
        h: symmetric and positive definite; if rounding errors make it indefinite, its diagonal is increased until it
            is definite again.
        accumulate: the kernel that adds products.

    Raises:
        NonFiniteError: h stays indefinite after the diagonal has been increased several times.
    """
    reverse = h[::-1, ::-1]
    diagonal = np.einsum("ii->i", reverse).astype(np.float64)
    more = float(np.add.reduce(diagonal)) / len(h) * 1e-6
    for _ in range(_TRIES):
        lower = _cholesky(reverse, diagonal, accumulate)
        if lower is not None:
            return lower[::-1, ::-1].T
        diagonal += more
        more *= 10
    raise NonFiniteError("the moment is not positive, however much is added to its diagonal; calibrate again")


def _cholesky(h: F32, diagonal: F64, accumulate: Accumulate) -> F64 | None:
    """Return the upper triangular U with ``U^T U = h`` (Cholesky), h with that diagonal; None if it is indefinite."""
    size = len(h)
    upper = np.zeros(h.shape)  # no `zeros_like`, which writes all of it: pages below the diagonal are never touched
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        block = h[start:stop, start:].astype(np.float64, order="C")
        np.einsum("ii->i", block[:, : stop - start])[:] = diagonal[start:stop]
        accumulate(block, -upper[:start, start:stop], upper[:start, start:])
        for first in range(start, stop, _INNER):
            last = min(first + _INNER, stop)
            inner = block[first - start : last - start, first - start :]
            # The order of each element's differences is that of the rows, however they are grouped.
            accumulate(inner, -upper[start:first, first:last], upper[start:first, first:])
            if not _eliminate(inner, upper[first:last, first:]):
                return None
    return upper


def _eliminate(block: F64, upper: F64) -> bool:
    """Write the rows [n, m] of the factor, from what is left of the rows of the matrix; False if it is indefinite."""
    for j in range(len(block)):
        pivot = block[j, j]
        if not pivot > 0:
            return False
        row = block[j, j:] / np.sqrt(pivot)
        upper[j, j:] = row
        block[j + 1 :, j:] -= row[1 : len(block) - j, None] * row
    return True


def spread(factor: F64) -> F32:
    """Return the weight ``R_kj / R_jj`` of column k's error in the target of column j > k, float32 [cols, cols]."""
    return single(factor, np.einsum("ii->i", factor))


def single(factor: F64, divisor: F64 | None = None) -> F32:
    """Return the factor, its columns divided by `divisor` [cols], as contiguous float32 [cols, cols].

    Some rows at a time and without the zeros, since the factor is stored by columns.
    """
    found = np.zeros(factor.shape, np.float32)
    for start in range(0, len(factor), _BLOCK):
        part = factor[start : start + _BLOCK, start:]
        found[start : start + _BLOCK, start:] = part if divisor is None else part / divisor[start:]
    return found


def decreasing(moment: F32) -> Indices:
    """Return the column indices [cols] by descending diagonal of the moment; equal ones stay in order."""
    return np.argsort(-np.einsum("ii->i", moment), kind="stable")


__all__ = ["DAMPING", "damped", "decreasing", "single", "spread", "upper_factor"]
