"""Pipelines from one artifact to another: open, quantize, convert; passes; packages for model servers."""

from __future__ import annotations

from edgekit.pipeline._conversion import Progress as Progress
from edgekit.pipeline._conversion import convert as convert
from edgekit.pipeline._conversion import find_format as find_format
from edgekit.pipeline._conversion import make_manifest as make_manifest
from edgekit.pipeline._conversion import make_plan as make_plan
from edgekit.pipeline._conversion import open_artifact as open_artifact
from edgekit.pipeline._conversion import open_source as open_source
from edgekit.pipeline._conversion import quantize as quantize
from edgekit.pipeline._notes import summary_line as summary_line
from edgekit.pipeline._notes import without_tokenizer as without_tokenizer
from edgekit.pipeline._recipes import find_recipe as find_recipe
from edgekit.pipeline._recipes import list_recipes as list_recipes
from edgekit.pipeline._recipes import read_recipe as read_recipe
from edgekit.recipe import AsIs as AsIs
from edgekit.recipe import own_precision as own_precision

__all__ = [
    "AsIs",
    "Progress",
    "convert",
    "find_format",
    "find_recipe",
    "list_recipes",
    "make_manifest",
    "make_plan",
    "open_artifact",
    "open_source",
    "own_precision",
    "quantize",
    "read_recipe",
    "summary_line",
    "without_tokenizer",
]
