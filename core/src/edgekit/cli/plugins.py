"""`edgekit plugins`: what is installed, what each plugin provides, and what is wrong with it."""

from __future__ import annotations

import attrs
import click

from edgekit.cli._output import json_option, print_json, table
from edgekit.plugin import installed


@click.command("plugins")
@json_option
def command(as_json: bool) -> None:
    """List the installed plugins; a plugin that fails is shown with its error and breaks no other."""
    found = installed()
    if as_json:
        print_json([attrs.asdict(plugin) for plugin in found])
        return
    rows = [
        (
            p.name,
            f"{p.distribution} {p.version}",
            p.status,
            p.error or ", ".join(f"{len(v)} {k}" for k, v in p.provides.items()),
        )
        for p in found
    ]
    click.echo(table(("plugin", "distribution", "status", "provides"), rows))
