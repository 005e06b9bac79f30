"""What an importance matrix makes of the weights of a search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgekit.reference.ggml._layout import F32, columns
from edgekit.reference.ggml._search import total


class Importance(NamedTuple):
    """The importance of the elements of some blocks.

    Attributes:
        columns: mean squared activation of each element's input column, [blocks, n].
        row_power: mean of x² over the whole row that the block is part of, [blocks].
    """

    columns: F32
    row_power: F32


def row_power(x: F32) -> F32:
    """The mean of x² over each row [rows], summed one float32 after the other."""
    power = np.zeros(x.shape[0], np.float32)
    for start in range(0, x.shape[1], 1 << 12):
        part = np.square(x[:, start : start + (1 << 12)])
        part[:, 0] += power
        power = np.add.accumulate(part, axis=1)[:, -1]
    return power / np.float32(x.shape[1])


def block_power(x: F32) -> F32:
    """The sum of x² over each block [blocks, n], one float32 after the other: [blocks]."""
    return total(columns(np.square(x)))


def search_weights(x: F32, importance: F32, power: F32) -> F32:
    """``importance * sqrt(power + x²)``; all three broadcast together."""
    return importance * np.sqrt(power + np.square(x))
