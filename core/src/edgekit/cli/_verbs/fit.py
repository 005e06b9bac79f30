"""`edgekit fit`: choose precisions for a size."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli._verbs.sensitivity import names, opened, refuse_inputs
from edgekit.cli.options import executor_option, rounding_options, workers_at
from edgekit.cli.output import json_option, print_json, read_text
from edgekit.evaluation.fitting import Measure, fit
from edgekit.pipeline._conversion import Opened, Rounding, open_artifact
from edgekit.pipeline._progress import bar


@click.command("fit")
@click.argument("model")
@click.option("--size", metavar="SIZE", help="Of the artifact, such as 3.5GB, 900MB or 3.3GiB.")
@click.option("--bits", type=float, metavar="B", help="Of a weight on average, instead of a size.")
@click.option("--like", metavar="RECIPE", help="As large as this recipe's artifact, instead of a size.")
@click.option("--text", metavar="FILE", help='A text typical of the model\'s use, UTF-8; "-" is stdin.')
@click.option("--to", required=True, metavar="PATH", help="File or directory to write; its suffix decides the format.")
@click.option("--format", "format_", metavar="NAME", help="Format to write; default: by the suffix.")
@click.option("--allow", metavar="P,P,…", help="Precisions to choose from; default: those that the format suggests.")
@rounding_options
@click.option("--work", metavar="DIR", help="For what is measured and the recipe; default: PATH.fit.")
@click.option("--backend", metavar="NAME", help="Encoders to use; all exact ones write the same bytes.")
@click.option(
    "--measure",
    type=click.Choice(["every", "one"]),
    help="Every precision of each tensor, or one, which predicts the others; default: by the model's size.",
)
@executor_option("calibrate, measure and encode")
@click.option("--force", is_flag=True, help="Replace files that edgekit did not write, and an edited recipe.")
@json_option
def command(
    model: str,
    size: str | None,
    bits: float | None,
    like: str | None,
    text: str | None,
    to: str,
    format_: str | None,
    allow: str | None,
    calibration: str | None,
    rounding: Rounding,
    context: int | None,
    work: str | None,
    backend: str | None,
    measure: Measure | None,
    executor: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Choose the precision of every tensor of MODEL so that the whole artifact has a size and loses least.

    A part of the text calibrates, another chooses, and a third measures the result. The recipe is written to DIR as a
    TOML file, which `edgekit quantize` takes, with the same bytes.
    """
    source = open_artifact(model)
    refuse_inputs([to, work], [text, calibration])
    with bar("fit") as report, workers_at(executor) as workers:
        fitted = fit(
            Opened(source),
            None if text is None else read_text(text),
            to=Path(to),
            size=size,
            bits=bits,
            like=like,
            format=format_,
            allow=names(allow),
            calibration=opened(calibration),
            rounding=rounding,
            context=context,
            backend=backend,
            work=work,
            measure=measure,
            executor=workers,
            progress=report,
            overwrite=force,
        )
    if as_json:
        print_json(fitted.to_dict())
    else:
        click.echo(str(fitted))


__all__ = ["command"]
