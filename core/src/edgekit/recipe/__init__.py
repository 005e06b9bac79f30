"""Recipes: the precision of each tensor, with the reason."""

from __future__ import annotations

from edgekit.precision import fits as fits
from edgekit.precision import quantized as quantized
from edgekit.recipe._check import check_plan as check_plan
from edgekit.recipe._plan import Assignment as Assignment
from edgekit.recipe._plan import Plan as Plan
from edgekit.recipe._plan import Slot as Slot
from edgekit.recipe._plan import is_matrix as is_matrix
from edgekit.recipe._recipes import AsIs as AsIs
from edgekit.recipe._recipes import Clause as Clause
from edgekit.recipe._recipes import Recipe as Recipe
from edgekit.recipe._recipes import Rule as Rule
from edgekit.recipe._recipes import Rules as Rules
from edgekit.recipe._recipes import Uniform as Uniform
from edgekit.recipe._recipes import own_precision as own_precision

__all__ = [
    "AsIs",
    "Assignment",
    "Clause",
    "Plan",
    "Recipe",
    "Rule",
    "Rules",
    "Slot",
    "Uniform",
    "check_plan",
    "fits",
    "is_matrix",
    "own_precision",
    "quantized",
]
