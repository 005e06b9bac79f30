"""`edgekit sensitivity`: what each tensor costs in each precision."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import executor_option, rounding_options, workers_at
from edgekit.cli.output import json_option, print_json, read_text, table
from edgekit.errors import UsageError
from edgekit.evaluation.fitting import Sensitivity, sensitivity
from edgekit.evaluation.fitting._heatmap import power
from edgekit.files.atomic import write_atomic
from edgekit.files.guard import refuse_harm
from edgekit.pipeline._conversion import Opened, Rounding, open_artifact
from edgekit.pipeline._progress import bar
from edgekit.pipeline.rounding import Calibration, read_calibration


@click.command("sensitivity")
@click.argument("model")
@click.option("--text", metavar="FILE", help='A text typical of the model\'s use, UTF-8; "-" is stdin.')
@click.option("--format", "format_", metavar="NAME", help="Whose precisions to measure; default: the model's format.")
@click.option("--allow", metavar="P,P,…", help="Precisions to measure; default: those that the format suggests.")
@rounding_options
@click.option("--to", metavar="FILE", help="JSON file for the values; an interrupted run goes on after the last.")
@executor_option("measure")
@click.option("--picture", metavar="FILE", help="SVG file for the heat map.")
@click.option("--force", is_flag=True, help="Replace files that hold something else.")
@json_option
def command(
    model: str,
    text: str | None,
    format_: str | None,
    allow: str | None,
    calibration: str | None,
    rounding: Rounding,
    context: int | None,
    to: str | None,
    executor: str | None,
    picture: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure what each weight matrix of MODEL costs in each precision: the KL divergence with it alone quantized.

    A part of the text calibrates, another is measured on.
    """
    source = open_artifact(model)
    refuse_inputs([to, picture], [text, calibration])
    if picture is not None:
        refuse_harm(Path(picture), source.reads)
        refuse_foreign(Path(picture), force)
    with bar("sensitivity") as report, workers_at(executor) as workers:
        measured = sensitivity(
            Opened(source),
            None if text is None else read_text(text),
            format=format_,
            allow=names(allow),
            calibration=opened(calibration),
            rounding=rounding,
            context=context,
            to=to,
            executor=workers,
            progress=report,
            overwrite=force,
        )
    if picture is not None:
        write_atomic(Path(picture), measured.svg().encode())
    if as_json:
        print_json(measured.to_dict())
    else:
        show(measured)


def show(measured: Sensitivity) -> None:
    """Print the divergences as a table."""
    tensors, precisions = (list(dict.fromkeys(getattr(m, key) for m in measured.measured)) for key in _KEYS)
    cells = {(m.tensor, m.precision): power(m.kl) for m in measured.measured}
    rows = [[tensor, *(cells.get((tensor, precision), "–") for precision in precisions)] for tensor in tensors]
    click.echo(table(["tensor", *(precision.rpartition(":")[2] for precision in precisions)], rows))
    click.echo(
        f"\nKL divergence in nats with one tensor quantized, over {measured.positions} positions; "
        f"noise floor {power(measured.noise_floor)}"
    )


_KEYS = ("tensor", "precision")


def names(allow: str | None) -> list[str] | None:
    """Split the names of precisions at commas; None without any."""
    return None if allow is None else [name.strip() for name in allow.split(",") if name.strip()]


def opened(calibration: str | None) -> Calibration | None:
    """Open a calibration file, if one is named."""
    return None if calibration is None else read_calibration(Path(calibration))


def refuse_inputs(targets: list[str | None], inputs: list[str | None]) -> None:
    """Raise if a file to write is one that is read."""
    read = [Path(name) for name in inputs if name is not None and name != "-"]
    for target in targets:
        if target is not None:
            refuse_harm(Path(target), read)


def refuse_foreign(picture: Path, force: bool) -> None:
    """Raise if a file is there that is no heat map."""
    if force or not picture.exists():
        return
    if not (picture.is_file() and picture.read_bytes()[:64].startswith(b'<svg class="heat-map"')):
        raise UsageError(f"{picture}: it is there already and is no heat map; choose another file, or say --force")


__all__ = ["command", "names", "opened", "refuse_foreign", "refuse_inputs", "show"]
