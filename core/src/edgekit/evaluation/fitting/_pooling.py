"""Reduces the noise of measured divergences by pooling over tensors and precisions.

A mean over some thousand positions has a standard error of 5 to 20 %, since few positions contribute most of it. But
``log kl`` is nearly the sum of a term for the tensor and a term for the precision. So this sum is fitted to all values
by least squares, and each value is replaced by the geometric mean of itself and the fit. On the sample model the error
of the logarithms, against another text of twice the length, falls from 0.32 to 0.29, and the choices become about as
good as those made with the values measured on that other text.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.evaluation.fitting._measuring import Divergence
from edgekit.typing import F64, Indices

#: Rounds of alternating least squares; a full table needs one.
_ROUNDS = 50
Table = dict[tuple[str, str], Divergence]


def pooled(table: Table, noise_floor: float) -> Table:
    """Return the table with pooled values; values up to the noise floor or not finite are unchanged.

    Args:
        table: the divergences by tensor and precision.
        noise_floor: KL divergence of the source from itself, in nats.
    """
    known = {key: math.log(found.kl) for key, found in table.items() if noise_floor < found.kl < math.inf}
    if not known:
        return dict(table)
    tensors, precisions = (sorted({key[place] for key in known}) for place in (0, 1))
    rows = np.array([tensors.index(tensor) for tensor, _ in known])
    columns = np.array([precisions.index(precision) for _, precision in known])
    values = np.array(list(known.values()))
    predicted = _predicted(values, rows, columns)
    result = dict(table)
    for key, value, other in zip(known, values, predicted, strict=True):
        ratio = math.exp((other - value) / 2)
        result[key] = Divergence(table[key].kl * ratio, table[key].error * ratio)
    return result


def _predicted(values: F64, rows: Indices, columns: Indices) -> F64:
    """Return the least squares fit of the values by a term for the row plus a term for the column."""
    of_row, of_column = np.zeros(rows.max() + 1), np.zeros(columns.max() + 1)
    for _ in range(_ROUNDS):
        of_row = np.bincount(rows, values - of_column[columns]) / np.bincount(rows)
        of_column = np.bincount(columns, values - of_row[rows]) / np.bincount(columns)
    predicted: F64 = of_row[rows] + of_column[columns]
    return predicted


__all__ = ["pooled"]
