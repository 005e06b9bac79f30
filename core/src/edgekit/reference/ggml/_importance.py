"""The weights of a search, computed from an importance matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgekit.numerics.blocks import row_chunks
from edgekit.reference.ggml._layout import columns
from edgekit.reference.ggml._search import total
from edgekit.typing import F32

_COLUMNS = 1 << 12  # rows that are summed at a time


class Importance(NamedTuple):
    """The importance of the elements of some blocks.

    Attributes:
        columns: mean squared activation of each element's input column, [blocks, n].
        row_power: mean of x² over the row of each block, [blocks]; only for types that use it.
    """

    columns: F32
    row_power: F32


def row_power(x: F32) -> F32:
    """Return the mean of x² over each row [rows], summed sequentially in float32."""
    power = np.empty(x.shape[0], np.float32)
    for rows in row_chunks(x.shape[0], _COLUMNS):
        power[rows] = _row_sums(x[rows])
    return power / np.float32(x.shape[1])


def _row_sums(x: F32) -> F32:
    sums = np.zeros(x.shape[0], np.float32)
    for start in range(0, x.shape[1], _COLUMNS):
        squares = np.square(x[:, start : start + _COLUMNS])
        squares[:, 0] += sums
        sums = np.add.accumulate(squares, axis=1)[:, -1]
    return sums


def block_power(x: F32) -> F32:
    """Return the sum of x² over each block [blocks, n], summed sequentially in float32: [blocks]."""
    return total(columns(np.square(x)))


def search_weights(x: F32, importance: F32, power: F32) -> F32:
    """Return ``importance * sqrt(power + x²)``; the three arrays are broadcast."""
    return importance * np.sqrt(power + np.square(x))
