"""From one artifact to another: open, quantize, convert; passes; packages for servers."""

from __future__ import annotations

from edgekit.pipeline.conversion import AsIs as AsIs
from edgekit.pipeline.conversion import Progress as Progress
from edgekit.pipeline.conversion import convert as convert
from edgekit.pipeline.conversion import find_format as find_format
from edgekit.pipeline.conversion import find_recipe as find_recipe
from edgekit.pipeline.conversion import make_manifest as make_manifest
from edgekit.pipeline.conversion import open_artifact as open_artifact
from edgekit.pipeline.conversion import open_source as open_source
from edgekit.pipeline.conversion import own_precision as own_precision
from edgekit.pipeline.conversion import quantize as quantize

__all__ = [
    "AsIs",
    "Progress",
    "convert",
    "find_format",
    "find_recipe",
    "make_manifest",
    "open_artifact",
    "open_source",
    "own_precision",
    "quantize",
]
