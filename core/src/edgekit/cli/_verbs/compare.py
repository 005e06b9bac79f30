"""`edgekit compare`: the loss of a conversion."""

from __future__ import annotations

import attrs
import click

from edgekit.cli.options import context_option
from edgekit.cli.output import json_option, print_json, progress_bar, read_text
from edgekit.evaluation import compare
from edgekit.pipeline._conversion import open_artifact


@click.command("compare")
@click.argument("baseline")
@click.argument("artifact")
@click.option("--text", metavar="FILE", help="Also measure perplexity, KL divergence and top-1 agreement on this text.")
@context_option()
@click.option(
    "--sort", type=click.Choice(["model", "error"]), default="model", show_default=True, help="Order of tensors."
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the first N tensors.")
@json_option
def command(
    baseline: str, artifact: str, text: str | None, context: int | None, sort: str, top: int | None, as_json: bool
) -> None:
    """Compare ARTIFACT with BASELINE: size, error of every tensor and, with a text, quality.

    A tensor's share is its part of the total squared error; --sort error lists the largest first.
    """
    sources = open_artifact(baseline), open_artifact(artifact)
    with progress_bar("compare") as report:
        comparison = compare(*sources, None if text is None else read_text(text), context=context, progress=report)
    comparison = (
        comparison.by_error(top) if sort == "error" else attrs.evolve(comparison, tensors=comparison.tensors[:top])
    )
    if as_json:
        print_json(comparison.to_dict())
    else:
        click.echo(str(comparison))


__all__ = ["command"]
