"""One workflow over all of edgekit's formats and runtimes.

This module registers what the plugin provides by name and imports none of the modules behind the names.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register the commands, a line each."""
    register("bench", "edgekit_workflow.commands.bench:command")
    register("blame", "edgekit_workflow.commands.blame:command")
    register("gate", "edgekit_workflow.commands.gate:command")
    register("optimize", "edgekit_workflow.commands.optimize:command")
    register("report", "edgekit_workflow.commands.report:command")


__all__ = ["edgekit_api", "edgekit_register_commands"]
