"""`edgekit eval`: measure perplexity on a text."""

from __future__ import annotations

import click

from edgekit.cli.options import context_option
from edgekit.cli.output import json_option, print_json, progress_bar, read_text
from edgekit.evaluation import evaluate
from edgekit.pipeline._conversion import open_artifact


@click.command("eval")
@click.argument("artifact")
@click.argument("text")
@click.option("--baseline", metavar="PATH", help="Also measure KL divergence and top-1 agreement against this model.")
@context_option()
@json_option
def command(artifact: str, text: str, baseline: str | None, context: int | None, as_json: bool) -> None:
    """Measure ARTIFACT's perplexity on the text file TEXT ("-" reads stdin), with the core's numpy forward pass."""
    against = None if baseline is None else open_artifact(baseline)
    judged = open_artifact(artifact)
    with progress_bar("eval") as report:
        evaluation = evaluate(judged, read_text(text), baseline=against, context=context, progress=report)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        click.echo(str(evaluation))


__all__ = ["command"]
