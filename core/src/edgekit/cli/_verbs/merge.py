"""`edgekit merge`: merge an adapter into its model."""

from __future__ import annotations

import click

from edgekit.cli._verbs.quantize import show_written
from edgekit.cli.output import json_option, print_notes
from edgekit.pipeline._conversion import open_artifact
from edgekit.pipeline._progress import bar
from edgekit.pipeline.merging import merge


@click.command("merge")
@click.argument("model")
@click.argument("adapter")
@click.option("--to", required=True, metavar="PATH", help="File or directory to write; its suffix decides the format.")
@click.option("--recipe", metavar="NAME", help="Quantize the merged model; default: floats, as the model has them.")
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    help="Float type of the weight matrices, without a recipe.",
)
@click.option("--format", "format_", metavar="NAME", help="Format to write; default: by the suffix.")
@click.option("--allow-other-base", is_flag=True, help="Merge an adapter that names another model than MODEL does.")
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command(
    model: str,
    adapter: str,
    to: str,
    recipe: str | None,
    dtype: str | None,
    format_: str | None,
    allow_other_base: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Merge the LoRA or DoRA ADAPTER, a directory of peft's, into the Hugging Face directory MODEL."""
    source = open_artifact(model)
    with bar("merge") as report:
        written = merge(
            source,
            adapter,
            to=to,
            recipe=recipe,
            dtype=dtype,
            format=format_,
            allow_other_base=allow_other_base,
            progress=report,
            overwrite=force,
        )
    print_notes("merge", written.notes)
    show_written(source, written, as_json)


__all__ = ["command"]
