"""One workflow over all of edgekit's formats and runtimes.

This module registers what the plugin provides by name and imports none of the modules behind the names.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register the commands, a line each."""
    register("alerts", "edgekit_workflow.commands.alerts:command")
    register("assess", "edgekit_workflow.commands.assess:command")
    register("bench", "edgekit_workflow.commands.bench:command")
    register("blame", "edgekit_workflow.commands.blame:command")
    register("diagnose", "edgekit_workflow.commands.diagnose:command")
    register("gate", "edgekit_workflow.commands.gate:command")
    register("profile", "edgekit_workflow.commands.profile:command")
    register("recommend", "edgekit_workflow.commands.recommend:command")
    register("optimize", "edgekit_workflow.commands.optimize:command")
    register("report", "edgekit_workflow.commands.report:command")
    register("watch", "edgekit_workflow.commands.watch:command")


@hookimpl
def edgekit_register_packagers(register: Register) -> None:
    """Register the packagers for containers, clusters, Ollama and phones."""
    register("android", "edgekit_workflow.mobile:Android")
    register("docker", "edgekit_workflow.packaging:Docker")
    register("ios", "edgekit_workflow.mobile:Ios")
    register("kubernetes", "edgekit_workflow.packaging:Kubernetes")
    register("ollama", "edgekit_workflow.packaging:Ollama")


__all__ = ["edgekit_api", "edgekit_register_commands", "edgekit_register_packagers"]
