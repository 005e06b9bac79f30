"""Chooses precisions by measurement: the divergence of each tensor in each precision, and the best choice of a size."""

from __future__ import annotations

from edgekit.evaluation.fitting._fitted import Fitted, Measure, fit
from edgekit.evaluation.fitting._sensitivities import Measured, Sensitivity, sensitivity

__all__ = ["Fitted", "Measure", "Measured", "Sensitivity", "fit", "sensitivity"]
