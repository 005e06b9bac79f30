"""The formats that the core reads and writes, and the writers that plugin formats derive from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.formats.writer import Places, PlannedDirectory, PlannedFile, PlannedWriter

if TYPE_CHECKING:
    from edgekit.formats._halves import four_bit_floats
    from edgekit.formats._hf_files import Weights, carried, open_weights
    from edgekit.formats._hf_generate import generation_config, small_files
    from edgekit.formats._parts import PartLayout, Together, part_layouts, rows_together
    from edgekit.formats._sentence import with_modules

#: Names that not every format needs, and their modules, which are imported when they are asked for.
_ON_DEMAND = {
    "Weights": "_hf_files",
    "carried": "_hf_files",
    "four_bit_floats": "_halves",
    "open_weights": "_hf_files",
    "generation_config": "_hf_generate",
    "small_files": "_hf_generate",
    "PartLayout": "_parts",
    "Together": "_parts",
    "part_layouts": "_parts",
    "rows_together": "_parts",
    "with_modules": "_sentence",
}

if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _ON_DEMAND:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"edgekit.formats.{_ON_DEMAND[name]}"), name)


__all__ = [
    "PartLayout",
    "Places",
    "PlannedDirectory",
    "PlannedFile",
    "PlannedWriter",
    "Together",
    "Weights",
    "carried",
    "four_bit_floats",
    "generation_config",
    "open_weights",
    "part_layouts",
    "rows_together",
    "small_files",
    "with_modules",
]
