"""`edgekit blame`: the weights' part and the runtime's of an artifact's distance from its source."""

from __future__ import annotations

import click

import edgekit
from edgekit.cli.output import json_option, print_json, progress_bar, read_text, table
from edgekit.evaluation.language import tokens_of
from edgekit_workflow.blame import TOKENS, Blame, blame


@click.command("blame", short_help="Find the layer that goes wrong.")
@click.argument("artifact")
@click.option("--against", "source", required=True, metavar="SOURCE", help="The model that it was made from.")
@click.option("--runtime", metavar="NAME", help="Runtime; the default is the fastest that runs the format.")
@click.option("--text", metavar="FILE", help="Compare on the beginning of this text; default: fixed token ids.")
@click.option("--tokens", type=click.IntRange(2), default=TOKENS, show_default=True, help="Tokens of the text.")
@click.option("--limit", type=click.FloatRange(min=0), help="Difference of logits that counts, in deviations.")
@json_option
def command(
    artifact: str,
    source: str,
    runtime: str | None,
    text: str | None,
    tokens: int,
    limit: float | None,
    as_json: bool,
) -> None:
    """Split ARTIFACT's distance from SOURCE into the part of its weights and that of the runtime, layer by layer."""
    ours = edgekit.open(artifact)
    ids = None if text is None else tokens_of(ours, read_text(text))[:tokens].tolist()
    with progress_bar("blame") as report:
        found = blame(ours, source, runtime, tokens=ids, limit=limit, progress=report)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(f"{found}\n\n{_table(found)}")


def _table(found: Blame) -> str:
    rows = [
        (found.place(one.index), f"{one.weights:.4f}", "–" if one.kernels is None else f"{one.kernels:.4f}")
        for one in found.layers
    ]
    return table(("part", "weights", "runtime"), rows)


__all__ = ["command"]
