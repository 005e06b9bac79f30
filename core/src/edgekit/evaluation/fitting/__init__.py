"""Precisions chosen by measurement: what each tensor costs in each, and the best choice for a size."""

from __future__ import annotations

from edgekit.evaluation.fitting._fitted import Fitted, fit
from edgekit.evaluation.fitting._sensitivities import Measured, Sensitivity, sensitivity

__all__ = ["Fitted", "Measured", "Sensitivity", "fit", "sensitivity"]
