"""`edgekit vectors`: test vectors of any precision, for backends in any language."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from edgekit.cli.output import json_option, print_json
from edgekit.errors import UsageError
from edgekit.precision import find_precision


@click.command("vectors")
@click.argument("precisions", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory to write into.")
@click.option("--backend", help="Encoder to use: reference (the default), or a plugin's name.")
@json_option
def command(precisions: tuple[str, ...], out: Path, backend: str | None, as_json: bool) -> None:
    """Write inputs and encoded bytes of PRECISIONS as JSON, with provenance and SHA-256.

    The inputs are fixed: normal and heavy-tailed rows, ties, zeros of both signs, constants, subnormal, one-sided and
    huge values. A file for each convention; arrays are base64 of little-endian bytes.
    """
    from edgekit.encoding._codecs import REFERENCE, encode
    from edgekit.testing import vectors

    chosen = [find_precision(name) for name in dict.fromkeys(precisions)]
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file; --out must be a directory")
    who = backend or REFERENCE
    answers = [
        answer
        for precision in chosen
        for answer in vectors.answers(
            precision, lambda x, w, p=precision: encode(x, p, importance=w, backend=who).parts, f"edgekit's {who}"
        )
    ]
    files = vectors.write(
        out, answers, {"encoder": who, "edgekit": _version("edgekit-core"), "numpy": _version("numpy")}
    )
    if as_json:
        print_json([{"file": str(file), "nbytes": file.stat().st_size} for file in files])
        return
    for file in files:
        click.echo(f"{file}  {file.stat().st_size} bytes")


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # a source tree on the path
        return "0"


__all__ = ["command"]
