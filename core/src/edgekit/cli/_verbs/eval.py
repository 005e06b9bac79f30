"""`edgekit eval`: measure perplexity on a text."""

from __future__ import annotations

import click

from edgekit.cli.options import context_option, executor_option, workers_at
from edgekit.cli.output import json_option, print_json, progress_bar, read_text
from edgekit.evaluation import evaluate
from edgekit.pipeline._conversion import Opened, open_artifact


@click.command("eval")
@click.argument("artifact")
@click.argument("text")
@click.option("--baseline", metavar="PATH", help="Also measure KL divergence and top-1 agreement against this model.")
@context_option()
@executor_option("compute")
@json_option
def command(
    artifact: str, text: str, baseline: str | None, context: int | None, executor: str | None, as_json: bool
) -> None:
    """Measure ARTIFACT's perplexity on the text file TEXT ("-" reads stdin), with the core's numpy forward pass."""
    against = None if baseline is None else Opened(open_artifact(baseline))
    judged = Opened(open_artifact(artifact))
    with progress_bar("eval") as report, workers_at(executor) as workers:
        evaluation = evaluate(
            judged, read_text(text), baseline=against, context=context, executor=workers, progress=report
        )
    if as_json:
        print_json(evaluation.to_dict())
    else:
        click.echo(str(evaluation))


__all__ = ["command"]
