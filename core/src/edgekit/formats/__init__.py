"""The formats that the core reads and writes, and the writers that plugin formats derive from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.formats.writer import Places, PlannedDirectory, PlannedFile, PlannedWriter

if TYPE_CHECKING:
    from edgekit.formats._hf_files import Weights, carried, open_weights
    from edgekit.formats._hf_generate import generation_config, small_files
    from edgekit.formats._parts import PartLayout, part_layouts
    from edgekit.formats._sentence import with_modules

#: Names of Hugging Face directories, and their modules: imported when they are asked for, since files need none.
_DIRECTORIES = {
    "Weights": "_hf_files",
    "carried": "_hf_files",
    "open_weights": "_hf_files",
    "generation_config": "_hf_generate",
    "small_files": "_hf_generate",
    "PartLayout": "_parts",
    "part_layouts": "_parts",
    "with_modules": "_sentence",
}

if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _DIRECTORIES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"edgekit.formats.{_DIRECTORIES[name]}"), name)


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
