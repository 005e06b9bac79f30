"""Precisions: one frozen record per number format, found by name."""

from edgekit.precision._record import Granularity, Precision, Spec, Tier
from edgekit.precision._registry import catalogue, find, register

__all__ = ["Granularity", "Precision", "Spec", "Tier", "catalogue", "find", "register"]
