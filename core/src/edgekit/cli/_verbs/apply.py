"""`edgekit apply`: run a plugin's pass over a whole artifact."""

from __future__ import annotations

from typing import Any

import click

from edgekit.artifact import Artifact
from edgekit.cli.options import value_options
from edgekit.cli.output import json_option, print_json, print_notes, size
from edgekit.pipeline.passes import run_pass


@click.command("apply")
@click.argument("name", metavar="PASS")
@click.argument("source")
@click.option("--to", required=True, metavar="PATH", help="File or directory to write.")
@value_options("the pass", "ratio=0.8")
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command(name: str, source: str, to: str, options: dict[str, Any], force: bool, as_json: bool) -> None:
    """Transform SOURCE as a whole with an installed PASS and report the loss; `edgekit plugins` lists passes."""
    notes: list[str] = []
    written = run_pass(source, name, to=to, options=options, overwrite=force, notes=notes)
    print_notes(name, written.notes, notes)
    _show(name, written, as_json)


def _show(name: str, written: Artifact, as_json: bool) -> None:
    quality = dict(written.manifest.quality) if written.manifest else {}
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "format": written.format,
                "pass": name,
                "size": written.nbytes,
                "files": [file.name for file in written.files],
                "quality": quality,
                "notes": dict(written.notes),
            }
        )
        return
    click.echo(f"{written.path}  {size(written.nbytes)}")
    for key, value in quality.items():
        click.echo(f"  {key}: {value:.6g}" if isinstance(value, float) else f"  {key}: {value}")


__all__ = ["command"]
