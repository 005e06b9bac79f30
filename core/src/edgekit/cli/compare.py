"""`edgekit compare`: what a conversion cost."""

from __future__ import annotations

import click

from edgekit.cli._output import json_option, print_json, progress, read_text
from edgekit.evaluation import compare
from edgekit.pipeline.conversion import open_artifact


@click.command("compare")
@click.argument("baseline")
@click.argument("artifact")
@click.option("--text", metavar="FILE", help="Also measure perplexity, KL divergence and top-1 agreement on this text.")
@click.option("--context", type=click.IntRange(min=2), help="Tokens of a window; 512, or the model's context if less.")
@json_option
def command(baseline: str, artifact: str, text: str | None, context: int | None, as_json: bool) -> None:
    """Compare ARTIFACT with BASELINE: size, error of every tensor and, with a text, quality."""
    sources = open_artifact(baseline), open_artifact(artifact)
    with progress("compare") as report:
        found = compare(*sources, None if text is None else read_text(text), context=context, progress=report)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(str(found))
