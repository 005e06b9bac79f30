"""The core's own registrations, through the same hooks as plugins."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Register the format of Hugging Face directories."""
    register("hf", "edgekit.formats.hf:HuggingFaceFormat", suffixes=())


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Register the numpy runtime, for every format whose model family the core implements."""
    register("numpy", "edgekit.runtime.numpy:NumpyRuntime.open", formats=("*",), speed=1)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register the commands of the command line, one module each; none is imported here."""
    for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "cli/_verbs")]):
        register(module.name.replace("_", "-"), f"edgekit.cli._verbs.{module.name}:command")


__all__ = ["edgekit_api", "edgekit_register_commands", "edgekit_register_formats", "edgekit_register_runtimes"]
