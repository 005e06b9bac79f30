"""Importance of columns that a calibration text never activated.

The searches of ggml's types weigh squared errors by the importance. A block whose columns all weigh 0 has no error to
minimize, and most types then store zeros: the block is erased. A zero means no information, not no importance: such
columns get the smallest importance of their matrix, and a matrix of zeros is encoded without importance.

The products of a search are float32: importance times powers of a weight, summed over a block. Below 2^-64 they
underflow, above 2^64 they overflow, with the same result. So less than 2^-64 counts as 0, and a matrix with more than
2^64 is scaled down by a power of two, which changes no result otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np

from edgekit.typing import F32

_LEAST, _MOST = 2.0**-64, 2.0**64


@attrs.frozen
class Filled:
    """An importance matrix without zeros.

    Attributes:
        importance: float32 [cols] by name of the weight matrix, each value positive; without those in `without`.
        columns: number of columns that were filled with the smallest importance, by name of the matrix, if any.
        without: names of the matrices of which no column has an importance.
    """

    importance: dict[str, F32]
    columns: dict[str, int]
    without: tuple[str, ...]


def fill_importance(importance: Mapping[str, F32]) -> Filled:
    """Replace the zeros of each matrix by its smallest importance; see the module's docstring.

    Args:
        importance: float32 [cols], finite and not negative, by name of the weight matrix.

    Example:
        >>> filled = fill_importance({"a": np.float32([0, 2, 1, 0]), "b": np.float32([0, 0])})
        >>> filled.importance["a"].tolist(), filled.columns, filled.without
        ([1.0, 2.0, 1.0, 1.0], {'a': 2}, ('b',))
    """
    scaled = {name: _scaled(np.asarray(values, np.float32)) for name, values in importance.items()}
    known = {name: values >= _LEAST for name, values in scaled.items()}
    filled = {n: np.where(known[n], v, v[known[n]].min()) for n, v in scaled.items() if known[n].any()}
    counts = {name: int(np.count_nonzero(~known[name])) for name in filled}
    return Filled(
        importance=filled,
        columns={name: count for name, count in counts.items() if count},
        without=tuple(name for name in scaled if name not in filled),
    )


def _scaled(values: F32) -> F32:
    """Return the values scaled by a power of two to at most 2^64."""
    most = float(values.max(initial=0))
    if not most > _MOST:
        return values
    return np.ldexp(values, 64 - int(np.frexp(most)[1])).astype(np.float32)


__all__ = ["Filled", "fill_importance"]
