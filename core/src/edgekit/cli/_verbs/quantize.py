"""`edgekit quantize`: quantize a model with a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgekit.artifact import Artifact
from edgekit.cli.options import executor_option, workers_at
from edgekit.cli.output import json_option, print_json, print_notes, progress_bar, size
from edgekit.errors import UsageError
from edgekit.files.guard import refuse_harm
from edgekit.pipeline._conversion import Nonfinite, Opened, Rounding, find_format, open_source, quantize
from edgekit.recipe import Recipe
from edgekit.typing import F32


@click.command("quantize")
@click.argument("source")
@click.argument("recipe")
@click.option("--to", required=True, metavar="PATH", help="File or directory to write; its suffix decides the format.")
@click.option("--format", "format_", metavar="NAME", help="Format to write; default: by the suffix.")
@click.option(
    "--tensor",
    "rules",
    multiple=True,
    metavar="PATTERN=PRECISION",
    help="Precision of the tensors whose name matches, instead of RECIPE's; the first match decides (repeatable).",
)
@click.option("--backend", metavar="NAME", help="Encoders to use; all exact ones write the same bytes.")
@click.option("--calibration", metavar="FILE", help="What `edgekit calibrate` measured of the model.")
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "feedback"]),
    help="How to choose codes; default: feedback with a calibration, else nearest.",
)
@click.option("--imatrix", metavar="FILE", help="Importance matrix of the model, from `edgekit imatrix` or llama.cpp.")
@click.option(
    "--exact-importance",
    is_flag=True,
    help="Use the importance matrix unchanged, zeros included, for llama.cpp's bytes.",
)
@click.option(
    "--nonfinite",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="Tensors that hold NaN or infinity: refuse the model, or keep them in float.",
)
@click.option(
    "--allow-unquantized", is_flag=True, help="Write the model even if less than half of its weights are quantized."
)
@executor_option("encode")
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command(
    source: str,
    recipe: str,
    to: str,
    format_: str | None,
    rules: tuple[str, ...],
    backend: str | None,
    calibration: str | None,
    rounding: Rounding | None,
    imatrix: str | None,
    exact_importance: bool,
    nonfinite: Nonfinite,
    allow_unquantized: bool,
    executor: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize SOURCE with RECIPE: a recipe such as Q4_K_M (`edgekit recipes` lists them), a precision such as
    affine:int4-sym-g32 (`edgekit precisions`), or a TOML file with rules of your own."""  # noqa: D205, D209
    artifact = open_source(source, find_format(format_, Path(to)))
    if imatrix:
        refuse_harm(Path(to), [Path(imatrix)])
    if calibration:
        refuse_harm(Path(to), [Path(calibration)])
    importance = _importance(imatrix, artifact)
    title = Path(recipe).name
    with progress_bar(title) as report, workers_at(executor) as workers:
        written = quantize(
            artifact if workers is None else Opened(artifact),
            Recipe.of(parse_rules(rules), recipe) if rules else recipe,
            to=to,
            format=format_,
            importance=importance,
            calibration=calibration,
            rounding=rounding,
            exact_importance=exact_importance,
            backend=backend,
            nonfinite=nonfinite,
            allow_unquantized=allow_unquantized,
            executor=workers,
            progress=report,
            overwrite=force,
        )
    print_notes(title, written.notes)
    show_written(artifact, written, as_json)


def parse_rules(texts: Sequence[str]) -> dict[str, str]:
    """Parse ``PATTERN=PRECISION`` options; return the names of precisions by pattern, in order.

    Raises:
        UsageError: no ``=``, nothing on one side of it, or a pattern that is given twice.
    """
    rules: dict[str, str] = {}
    for text in texts:
        pattern, equals, precision = text.rpartition("=")
        if not (pattern and equals and precision):
            raise UsageError(f"--tensor {text}: write PATTERN=PRECISION, for example --tensor '*attn_v*=Q8_0'")
        if pattern in rules:
            raise UsageError(f"--tensor {text}: {pattern} has {rules[pattern]} already; give each pattern once")
        rules[pattern] = precision
    return rules


def _importance(imatrix: str | None, artifact: Artifact) -> dict[str, F32] | None:
    if imatrix is None:
        return None
    from edgekit.evaluation.calibration import read_importance

    return read_importance(imatrix, artifact)


def show_written(source: Artifact, written: Artifact, as_json: bool) -> None:
    """Print the sizes of the written artifact and of its source."""
    bits = 8 * written.tensor_nbytes / max(1, written.parameters)
    saved = 1 - written.nbytes / source.nbytes
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "format": written.format,
                "size": written.nbytes,
                "source_size": source.nbytes,
                "bits_per_weight": bits,
                "files": [file.name for file in written.files],
                "notes": dict(written.notes),
            }
        )
        return
    change = f"{abs(saved):.1%} {'smaller' if saved >= 0 else 'larger'} than {source.path.name}"
    click.echo(f"{written.path}  {size(written.nbytes)}  {bits:.3f} bits a weight  {change}")


__all__ = ["command", "parse_rules", "show_written"]
