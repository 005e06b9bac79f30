"""`edgekit imatrix`: make an importance matrix. `edgekit adapter`: write an adapter for llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgekit.cli.output import json_option, print_json
from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, UsageError
from edgekit.evaluation.calibration import collect, write_importance
from edgekit.files.guard import refuse_harm
from edgekit.pipeline import open_artifact
from edgekit_gguf.adapter import write_adapter
from edgekit_gguf.imatrix import read_imatrix


@click.command("imatrix", short_help="Measure which weights matter on a text.")
@click.argument("model")
@click.argument("text")
@click.option("--to", required=True, metavar="FILE", help="File to write, in llama.cpp's form: it ends in .gguf.")
@click.option("--context", type=click.IntRange(min=3), help="Tokens of a window; 512, or the model's context if less.")
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
    """Run the text file TEXT through MODEL and write how strongly each column of its matrices is used.

    `edgekit quantize --imatrix FILE` then spends its bits accordingly.
    """
    words, source = _read(Path(text)), open_artifact(model)
    refuse_harm(Path(to), [*source.reads, Path(text)])
    if not force:
        _refuse_overwriting(Path(to))
    found = collect(source, words, context=context, outputs=outputs, runtime=runtime, progress=_progress)
    write_importance(to, found, Path(text).name)
    if as_json:
        print_json({"path": to, "matrices": len(found.sums), "tokens": found.tokens, "context": found.context})
    else:
        click.echo(f"{to}  {len(found.sums)} matrices, {found.tokens} tokens in windows of {found.context}")


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


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path}: it is not UTF-8 (at byte {error.start}); give a plain text file") from error
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}); give a plain text file") from error


def _progress(done: int, of: int, what: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{what or 'done'} {done}/{of} ", err=True, nl=not what)


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
    found = write_adapter(model, adapter, to, overwrite=force)
    if as_json:
        print_json({"path": to, "matrices": len(found.changes), "base": found.base})
    else:
        click.echo(f"{to}  {len(found.changes)} matrices")


__all__ = ["adapter", "imatrix"]
