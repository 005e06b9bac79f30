"""The formats that the core itself reads and writes, and what a plugin's format needs to know of a precision."""

from edgekit.formats._parts import PartLayout, part_layouts

__all__ = ["PartLayout", "part_layouts"]
