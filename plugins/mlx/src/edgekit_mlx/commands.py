"""`edgekit finetune` and `edgekit fuse`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import edgekit
from edgekit.artifact import Artifact
from edgekit.cli.output import json_option, print_json
from edgekit.errors import UsageError
from edgekit.files.guard import refuse_harm
from edgekit.pipeline import open_artifact
from edgekit_mlx.adapters import as_before, fused
from edgekit_mlx.training import Status, Training, finetune


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    default = Training()
    options = [
        click.option("--method", default="lora", show_default=True, help="lora, dora, or full (whole layers)."),
        click.option("--steps", default=default.steps, show_default=True, help="Batches to train in all."),
        click.option("--batch", default=default.batch, show_default=True, help="Examples of a batch."),
        click.option("--rate", default=default.rate, show_default=True, help="Learning rate of Adam."),
        click.option("--layers", type=int, help="Train the last so many layers; default: all."),
        click.option("--rank", default=default.rank, show_default=True, help="Rank of LoRA and DoRA."),
        click.option("--scale", default=default.scale, show_default=True, help="Scale of LoRA and DoRA."),
        click.option("--dropout", default=default.dropout, show_default=True, help="Dropout of LoRA and DoRA."),
        click.option("--length", type=int, help="Tokens of an example at most; 512, or the model's context if less."),
        click.option("--mask-prompts", is_flag=True, help="Learn completions and last answers alone."),
        click.option("--seed", default=default.seed, show_default=True, help="Of everything that is drawn."),
        click.option("--report-every", default=default.report_every, show_default=True, help="Steps between reports."),
        click.option(
            "--validate-every", default=default.validate_every, show_default=True, help="Steps between validations."
        ),
        click.option("--save-every", default=default.save_every, show_default=True, help="Steps between checkpoints."),
        click.option("--device", help="cpu or gpu; default: MLX's."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("finetune", short_help="Train an adapter on local examples.")
@click.argument("model")
@click.option("--data", required=True, metavar="DIR", help="Folder with train.jsonl and valid.jsonl, or a JSONL file.")
@click.option("--to", required=True, metavar="DIR", help="Directory of the adapter.")
@_training_options
@click.option("--fuse", metavar="DIR", help="Write the fine-tuned model there, too, as `edgekit fuse` does.")
@click.option("--quantize", "recipe", metavar="RECIPE", help="Recipe of the fused model; default: as the model was.")
@click.option("--restart", is_flag=True, help="Begin anew where an interrupted run has left a checkpoint.")
@json_option
def command_finetune(
    model: str, data: str, to: str, fuse: str | None, recipe: str | None, restart: bool, as_json: bool, **options: Any
) -> None:
    """Fine-tune MODEL on examples: {"text": …}, {"messages": […]} or {"prompt": …, "completion": …}, one a line.

    The same command goes on where it was interrupted, to the same weights. Nothing leaves this machine.
    """
    if recipe and not fuse:
        raise UsageError("--quantize is about the fused model; say --fuse DIR, too")
    asked, source = Training(**options), open_artifact(model)
    for target in filter(None, (to, fuse)):
        refuse_harm(Path(target), [*source.reads, Path(data)])
    report = finetune(source, Path(data), Path(to), asked, restart=restart, progress=_shown)
    written = _fuse(source, Path(to), Path(fuse), recipe, "mlx") if fuse else None
    if as_json:
        print_json({"adapter": to, "fused": fuse, "resumed": report.resumed, **report.to_dict()})
        return
    gain = "" if report.gain is None else f", validation loss {report.validation[-1][1]:.4f} ({-report.gain:+.1%})"
    click.echo(
        f"{to}  {report.method}, {report.steps} steps, {report.tokens:,} tokens{gain}; report.html has the curve"
    )
    if written is not None:
        click.echo(f"{fuse}  {written.nbytes:,} bytes")


def _shown(status: Status) -> None:
    parts = [f"step {status.step}/{status.steps}"]
    parts += [] if status.loss is None else [f"loss {status.loss:.4f}", f"{status.tokens_per_second:,.0f} tokens/s"]
    parts += [] if status.validation is None else [f"validation {status.validation:.4f}"]
    click.echo("  ".join(parts), err=True)


@click.command("fuse", short_help="Add an adapter to its model.")
@click.argument("model")
@click.argument("adapter")
@click.option("--to", required=True, metavar="PATH", help="The model to write.")
@click.option("--format", "format_name", metavar="NAME", help="Its format; default: by the suffix, else mlx.")
@click.option("--recipe", metavar="RECIPE", help="Quantize with this recipe; default: as the model was.")
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command_fuse(
    model: str, adapter: str, to: str, format_name: str | None, recipe: str | None, force: bool, as_json: bool
) -> None:
    """Write MODEL with ADAPTER added, one of `edgekit finetune` or of mlx_lm.lora, in any format and precision."""
    source = open_artifact(model)
    chosen = format_name or (None if Path(to).suffix else "mlx")
    written = _fuse(source, Path(adapter), Path(to), recipe, chosen, force)
    if as_json:
        print_json({"path": to, "format": written.format, "nbytes": written.nbytes})
    else:
        click.echo(f"{to}  {written.nbytes:,} bytes")


def _fuse(
    source: Artifact, adapter: Path, to: Path, recipe: str | None, format_name: str | None, force: bool = False
) -> Artifact:
    """Write a fused model with a recipe, or, without one, in the precisions of the source."""
    added = fused(source, adapter)
    chosen = recipe or as_before(source)
    return edgekit.quantize(added, chosen, to=to, format=format_name, overwrite=force, allow_unquantized=not recipe)


__all__ = ["command_finetune", "command_fuse"]
