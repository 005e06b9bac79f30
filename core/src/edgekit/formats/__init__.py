"""The formats that the core reads and writes, and the writers that plugin formats derive from."""

from edgekit.formats._hf_files import Weights, carried, open_weights
from edgekit.formats._hf_generate import generation_config, small_files
from edgekit.formats._parts import PartLayout, part_layouts
from edgekit.formats._sentence import with_modules
from edgekit.formats.writer import Places, PlannedDirectory, PlannedFile, PlannedWriter

__all__ = [
    "PartLayout",
    "Places",
    "PlannedDirectory",
    "PlannedFile",
    "PlannedWriter",
    "Weights",
    "carried",
    "generation_config",
    "open_weights",
    "part_layouts",
    "small_files",
    "with_modules",
]
