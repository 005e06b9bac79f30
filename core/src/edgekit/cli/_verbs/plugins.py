"""`edgekit plugins`: list the installed plugins with what they provide, and their problems."""

from __future__ import annotations

import attrs
import click

from edgekit.cli._examined import Examined, examine
from edgekit.cli.output import json_option, print_json, table
from edgekit.plugin._registry import PluginInfo, installed


@click.command("plugins")
@json_option
def command(as_json: bool) -> None:
    """List the installed plugins, each with what it provides, or with its problem.

    Everything that a plugin registers is loaded in a separate process, and encoders that claim to be exact are tested
    on a few rows. A plugin that fails, hangs or crashes does not affect others.
    """
    plugins = looked_at()
    if as_json:
        print_json([attrs.asdict(plugin) for plugin in plugins])
        return
    rows = [(p.name, f"{p.distribution} {p.version}", p.status, p.error or _provides(p)) for p in plugins]
    click.echo(table(("plugin", "distribution", "status", "provides, or problem"), rows))


def _provides(plugin: PluginInfo) -> str:
    provided = ", ".join(f"{len(names)} {role}" for role, names in plugin.provides.items())
    return f"provides {provided}" if provided else "provides nothing"


def looked_at() -> list[PluginInfo]:
    """Return the installed plugins; `error` of a loaded one states the problem of what it registers."""
    plugins = installed()
    examined = examine(plugins)
    return [attrs.evolve(p, error=p.error or _summary(examined.get(p.name, Examined()).problems)) for p in plugins]


def _summary(problems: tuple[str, ...]) -> str:
    """Return the first problem and the number of further ones."""
    more = f" (and {len(problems) - 1} more: `edgekit doctor`)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else ""


__all__ = ["command", "looked_at"]
