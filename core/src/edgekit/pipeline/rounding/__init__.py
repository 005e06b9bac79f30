"""Rounding with error feedback (GPTQ): the calibration of a model, and codes chosen with it.

An encoder rounds each weight to its nearest level. Error feedback rounds column by column and compensates the error of
each column in the columns after it, weighted by the second moments of the inputs on a calibration text. The format, its
size and its speed stay the same.
"""

from __future__ import annotations

from edgekit.pipeline.rounding._kernels import (
    Accumulate,
    Descend,
    Exponential,
    Feed,
    Largest,
    Multiply,
    Narrow,
    Places,
    Scale,
    Substitute,
    Totals,
    Turn,
    Units,
    Weigh,
    Words,
    accumulate,
    exponential,
    largest,
    multiply,
    narrow,
    scale,
    substitute,
    totals,
    turn,
    units,
    weigh,
)
from edgekit.pipeline.rounding.calibration import Calibration, read_calibration

__all__ = [
    "Accumulate",
    "Calibration",
    "Descend",
    "Exponential",
    "Feed",
    "Largest",
    "Multiply",
    "Narrow",
    "Places",
    "Scale",
    "Substitute",
    "Totals",
    "Turn",
    "Units",
    "Weigh",
    "Words",
    "accumulate",
    "exponential",
    "largest",
    "multiply",
    "narrow",
    "read_calibration",
    "scale",
    "substitute",
    "totals",
    "turn",
    "units",
    "weigh",
]
