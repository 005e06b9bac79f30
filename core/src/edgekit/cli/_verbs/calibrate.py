"""`edgekit calibrate`: measure the inputs of a model's matrices on a text."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import context_option, executor_option, workers_at
from edgekit.cli.output import json_option, print_json, progress_bar, read_text, size
from edgekit.errors import UsageError, counted
from edgekit.evaluation.moments import HOLDOUT, calibrate
from edgekit.files.guard import refuse_harm
from edgekit.pipeline._conversion import Opened, open_artifact


@click.command("calibrate")
@click.argument("model")
@click.option("--text", required=True, metavar="FILE", help='A text typical of the model\'s use, UTF-8; "-" is stdin.')
@click.option("--to", required=True, metavar="FILE", help="File to write; it ends in .safetensors.")
@context_option(least=3)
@click.option("--outputs/--no-outputs", default=True, show_default=True, help="Also for the matrix that makes logits.")
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, max_open=True),
    default=HOLDOUT,
    show_default=True,
    help="Share of the text that is set aside to measure with.",
)
@executor_option("compute the layers")
@click.option("--force", is_flag=True, help="Replace a file that is not a calibration.")
@json_option
def command(
    model: str,
    text: str,
    to: str,
    context: int | None,
    outputs: bool,
    holdout: float,
    executor: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run a text through MODEL and write the second moments of the inputs of its weight matrices.

    `edgekit quantize --calibration FILE` then rounds with error feedback.
    """
    if not to.endswith(".safetensors"):
        raise UsageError(f"--to {to}: a calibration file ends in .safetensors")
    source = open_artifact(model)
    if text != "-":
        refuse_harm(Path(to), [Path(text)])
    with progress_bar("calibrate") as report, workers_at(executor) as workers:
        made = calibrate(
            Opened(source),
            read_text(text),
            to=to,
            context=context,
            outputs=outputs,
            holdout=holdout,
            executor=workers,
            progress=report,
            overwrite=force,
        )
    nbytes = Path(to).stat().st_size
    if as_json:
        print_json(
            {
                "path": to,
                "size": nbytes,
                "matrices": sum(map(len, made.inputs.values())),
                "tokens": made.tokens,
                "held_out": int(made.held_out.size),
                "context": made.context,
            }
        )
        return
    matrices = counted(sum(map(len, made.inputs.values())), "matrix", "matrices")
    click.echo(
        f"{to}  {size(nbytes)}  {matrices}, {counted(made.tokens, 'token')} in windows of "
        f"{made.context}, {made.held_out.size} held out"
    )


__all__ = ["command"]
