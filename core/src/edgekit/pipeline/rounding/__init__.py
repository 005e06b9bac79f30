"""Rounding with error feedback: what a calibration text says of a model, and codes chosen by it.

An encoder rounds each weight by itself. Here the error of one column is made up for in the columns after it, weighed
by how the inputs of the columns go together on a text (GPTQ). The format, its size and its speed stay the same.
"""

from __future__ import annotations

from edgekit.pipeline.rounding._kernels import (
    Accumulate,
    Descend,
    Exponential,
    Feed,
    Multiply,
    Places,
    accumulate,
    exponential,
    multiply,
)
from edgekit.pipeline.rounding.calibration import Calibration, read_calibration

__all__ = [
    "Accumulate",
    "Calibration",
    "Descend",
    "Exponential",
    "Feed",
    "Multiply",
    "Places",
    "accumulate",
    "exponential",
    "multiply",
    "read_calibration",
]
