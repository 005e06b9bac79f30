"""`edgekit compare`: what a conversion cost."""

from __future__ import annotations

import attrs
import click

from edgekit.cli._output import json_option, print_json, read_text
from edgekit.evaluation import compare
from edgekit.pipeline.conversion import open_artifact
from edgekit.pipeline.progress import bar


@click.command("compare")
@click.argument("baseline")
@click.argument("artifact")
@click.option("--text", metavar="FILE", help="Also measure perplexity, KL divergence and top-1 agreement on this text.")
@click.option("--context", type=click.IntRange(min=2), help="Tokens of a window; 512, or the model's context if less.")
@click.option(
    "--sort", type=click.Choice(["model", "error"]), default="model", show_default=True, help="Order of tensors."
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the first N tensors.")
@json_option
def command(
    baseline: str, artifact: str, text: str | None, context: int | None, sort: str, top: int | None, as_json: bool
) -> None:
    """Compare ARTIFACT with BASELINE: size, error of every tensor and, with a text, quality.

    A tensor's share is that of the squared error of all tensors together; --sort error puts the largest first.
    """
    sources = open_artifact(baseline), open_artifact(artifact)
    with bar("compare") as report:
        found = compare(*sources, None if text is None else read_text(text), context=context, progress=report)
    found = found.by_error(top) if sort == "error" else attrs.evolve(found, tensors=found.tensors[:top])
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(str(found))


__all__ = ["command"]
