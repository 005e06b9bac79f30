"""The formats that the core itself reads and writes, and what a plugin's format needs of them."""

from edgekit.formats._hf_files import carried
from edgekit.formats._hf_generate import generation_config, small_files
from edgekit.formats._parts import PartLayout, part_layouts
from edgekit.formats.writer import PlannedDirectory, PlannedFile, PlannedWriter

__all__ = [
    "PartLayout",
    "PlannedDirectory",
    "PlannedFile",
    "PlannedWriter",
    "carried",
    "generation_config",
    "part_layouts",
    "small_files",
]
