"""Precisions: one frozen record per number format, found by name."""

from edgekit.precision._record import Granularity, Precision, Spec, Tier, fits, quantized
from edgekit.precision._registry import catalogue, find_precision, implementation, limits, load_plugins, register

__all__ = [
    "Granularity",
    "Precision",
    "Spec",
    "Tier",
    "catalogue",
    "find_precision",
    "fits",
    "implementation",
    "limits",
    "load_plugins",
    "quantized",
    "register",
]
