"""`edgekit imatrix`: make an importance matrix. `edgekit adapter`: write an adapter for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import context_option
from edgekit.cli.output import json_option, print_json, progress_bar, read_text
from edgekit.errors import EdgekitError, UsageError, counted
from edgekit.evaluation.calibration import collect, write_importance
from edgekit.files.guard import refuse_harm
from edgekit.pipeline import open_artifact
from edgekit_gguf.adapter import write_adapter
from edgekit_gguf.imatrix import read_imatrix


@click.command("imatrix", short_help="Measure which weights matter on a text.")
@click.argument("model")
@click.argument("text")
@click.option("--to", required=True, metavar="FILE", help="File to write, in llama.cpp's form: it ends in .gguf.")
@context_option(least=3)
@click.option("--outputs", is_flag=True, help="Also for the matrix that makes the logits.")
@click.option("--runtime", metavar="NAME", help="Who computes: llamacpp is fast. Default: numpy, exact and slow.")
@click.option("--force", is_flag=True, help="Replace a file that is not an importance matrix.")
@json_option
def imatrix(
    model: str,
    text: str,
    to: str,
    context: int | None,
    outputs: bool,
    runtime: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run the text file TEXT ("-" reads stdin) through MODEL and write the mean square of each matrix column's input.

    `edgekit quantize --imatrix FILE` weighs its errors with it.
    """
    words, source = read_text(text), open_artifact(model)
    refuse_harm(Path(to), source.reads if text == "-" else [*source.reads, Path(text)])
    if not force:
        _refuse_overwriting(Path(to))
    with progress_bar("imatrix") as report:
        importance = collect(source, words, context=context, outputs=outputs, runtime=runtime, progress=report)
    write_importance(to, importance, Path(text).name)
    if as_json:
        print_json(
            {"path": to, "matrices": len(importance.sums), "tokens": importance.tokens, "context": importance.context}
        )
    else:
        matrices, tokens = counted(len(importance.sums), "matrix", "matrices"), counted(importance.tokens, "token")
        click.echo(f"{to}  {matrices}, {tokens} in windows of {importance.context}")


def _refuse_overwriting(target: Path) -> None:
    """Refuse to replace an existing file that is not an importance matrix."""
    if not target.is_file():
        return
    try:
        read_imatrix(target)
    except EdgekitError as error:
        raise UsageError(
            f"{target} exists already and is not an importance matrix; choose another file, or replace it with --force"
        ) from error


@click.command("adapter", short_help="Write a LoRA adapter for llama.cpp.")
@click.argument("model")
@click.argument("adapter")
@click.option("--to", required=True, metavar="FILE", help="File to write; it ends in .gguf.")
@click.option("--force", is_flag=True, help="Replace a file that is not an adapter.")
@json_option
def adapter(model: str, adapter: str, to: str, force: bool, as_json: bool) -> None:
    """Write the LoRA ADAPTER, a directory of peft's for the Hugging Face directory MODEL, as a GGUF file.

    llama.cpp loads it beside MODEL's GGUF file, of any quantization.
    """
    written = write_adapter(model, adapter, to, overwrite=force)
    if as_json:
        print_json({"path": to, "matrices": len(written.changes), "base": written.base})
    else:
        click.echo(f"{to}  {counted(len(written.changes), 'matrix', 'matrices')}")


__all__ = ["adapter", "imatrix"]
