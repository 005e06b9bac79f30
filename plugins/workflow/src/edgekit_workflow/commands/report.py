"""`edgekit report`: a run's page, its Markdown, its JSON and a model card."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.output import json_option, print_json
from edgekit_workflow.report import report


@click.command("report")
@click.argument("run")
@click.option("--to", metavar="DIR", help="Where to write; default: RUN/report.")
@json_option
def command(run: str, to: str | None, as_json: bool) -> None:
    """Write the report of RUN, a directory of `edgekit optimize`: index.html, report.md, report.json and a model card.

    The page needs no network and nothing beside it. The same records give the same bytes.
    """
    written = report(Path(run), None if to is None else Path(to))
    if as_json:
        print_json({name: str(path) for name, path in written.items()})
        return
    for path in written.values():
        click.echo(path)


__all__ = ["command"]
