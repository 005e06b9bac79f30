"""`edgekit package`: write the directory that a model server expects."""

from __future__ import annotations

from typing import Any

import attrs
import click

from edgekit.cli.options import value_options
from edgekit.cli.output import json_option, print_json
from edgekit.pipeline.packaging import Package, package


@click.command("package")
@click.argument("source")
@click.option("--for", "server", required=True, metavar="SERVER", help="The model server, such as ovms.")
@click.option("--to", required=True, metavar="DIR", help="Directory to write.")
@value_options("the packager", "name=llama")
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command(source: str, server: str, to: str, options: dict[str, Any], force: bool, as_json: bool) -> None:
    """Write SOURCE in the directory layout of a model SERVER and print the command that starts it."""
    notes: list[str] = []
    written = package(source, server, to=to, options=options, overwrite=force, notes=notes)
    _show(written, as_json)
    for note in (*written.notes, *notes):
        click.echo(note, err=True)


def _show(written: Package, as_json: bool) -> None:
    if as_json:
        print_json({**attrs.asdict(written), "path": str(written.path)})
        return
    for file in written.files:
        click.echo(f"{written.path}/{file}")
    click.echo(f"\ncd {written.path} && {written.command}")


__all__ = ["command"]
