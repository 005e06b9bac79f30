"""Measured divergences, pooled over tensors and precisions.

A mean over some thousand positions has a standard error of 5 to 20 %: few positions make up most of it. But tensors and
precisions are much alike: nearly, ``log kl = (of the tensor) + (of the precision)``. So each value is replaced by the
geometric mean of itself and of what this sum predicts for it, with the least squares of all values. On the sample model
that takes the error of the logarithms, against another text of twice the length, from 0.32 to 0.29, and the choices
made with the figures become about as good as those made with the figures of that other text.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.evaluation.fitting._measuring import Divergence
from edgekit.typing import F64, Indices

#: Rounds of the least squares, one side after the other; a full table needs one.
_ROUNDS = 50
Table = dict[tuple[str, str], Divergence]


def pooled(table: Table, noise_floor: float) -> Table:
    """The table with pooled values; those that are not above the noise floor, or not finite, stay as they are.

    Args:
        table: by tensor and precision.
        noise_floor: nats.
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
    """The sums of a number of the row and one of the column that are nearest to the values."""
    of_row, of_column = np.zeros(rows.max() + 1), np.zeros(columns.max() + 1)
    for _ in range(_ROUNDS):
        of_row = np.bincount(rows, values - of_column[columns]) / np.bincount(rows)
        of_column = np.bincount(columns, values - of_row[rows]) / np.bincount(columns)
    predicted: F64 = of_row[rows] + of_column[columns]
    return predicted


__all__ = ["pooled"]
