"""`edgekit plugins`: what is installed, what each plugin provides, and what is wrong with it."""

from __future__ import annotations

import attrs
import click

from edgekit.cli._examined import Examined, examine
from edgekit.cli._output import json_option, print_json, table
from edgekit.plugin.registry import PluginInfo, installed


@click.command("plugins")
@json_option
def command(as_json: bool) -> None:
    """List the installed plugins, each with what it provides, or with what is wrong with it.

    Everything that a plugin registers is loaded in a process of its own, and what claims to be exact is tried on a few
    rows. A plugin that fails, hangs or crashes breaks no other.
    """
    found = looked_at()
    if as_json:
        print_json([attrs.asdict(plugin) for plugin in found])
        return
    rows = [(p.name, f"{p.distribution} {p.version}", p.status, p.error or _provides(p)) for p in found]
    click.echo(table(("plugin", "distribution", "status", "provides, or what is wrong"), rows))


def _provides(plugin: PluginInfo) -> str:
    told = ", ".join(f"{len(names)} {role}" for role, names in plugin.provides.items())
    return f"provides {told}" if told else "provides nothing"


def looked_at() -> list[PluginInfo]:
    """The installed plugins; `error` says of a loaded one what is wrong with what it brings."""
    found = installed()
    examined = examine(found)
    return [attrs.evolve(p, error=p.error or _told(examined.get(p.name, Examined()).problems)) for p in found]


def _told(problems: tuple[str, ...]) -> str:
    """The first problem, and how many more there are."""
    more = f" (and {len(problems) - 1} more: `edgekit doctor`)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else ""


__all__ = ["command", "looked_at"]
