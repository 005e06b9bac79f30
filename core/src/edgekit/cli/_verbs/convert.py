"""`edgekit convert`: write a model in another format without quantizing it."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli._verbs.quantize import show_written
from edgekit.cli.output import json_option, print_notes, progress_bar
from edgekit.pipeline._conversion import convert, find_format, open_source


@click.command("convert")
@click.argument("source")
@click.option("--to", required=True, metavar="PATH", help="File or directory to write; its suffix decides the format.")
@click.option("--format", "format_", metavar="NAME", help="Format to write; default: by the suffix.")
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    help="Float type of the weight matrices.",
)
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command(source: str, to: str, format_: str | None, dtype: str | None, force: bool, as_json: bool) -> None:
    """Write SOURCE in another format without quantizing; tensors that are quantized already are not changed."""
    artifact = open_source(source, find_format(format_, Path(to)))
    with progress_bar("convert") as report:
        written = convert(artifact, to, format=format_, dtype=dtype, progress=report, overwrite=force)
    print_notes("convert", written.notes)
    show_written(artifact, written, as_json)


__all__ = ["command"]
