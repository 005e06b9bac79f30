"""What the commands of edgekit and of plugins print with: tables and JSON on stdout, notes on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.pipeline._notes import summary_line
from edgekit.pipeline._progress import bar as progress_bar

#: A number, optionally with a unit, a percent sign or thousands separators; or a placeholder for a missing one.
_NUMBER = re.compile(r"[<+-]?[0-9][0-9,.]*(e[+-]?[0-9]+)?( ?(%|s|[kMGT]?B))?( ± [0-9.]+)?|∞|–|nan|")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Add ``--json`` to a command, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(data: Any) -> None:
    """Print indented JSON; NaN and infinity become null."""
    click.echo(json.dumps(_plain(data), indent=1, allow_nan=False, default=str))


def _plain(data: Any) -> Any:
    if isinstance(data, float):
        return data if data - data == 0 else None
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a plain text table: the first column aligned left, numbers right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [all(_numeric(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    ]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:]])


def _numeric(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def size(nbytes: float) -> str:
    """Format a size in bytes: 3.8 MB (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def print_notes(title: str, notes: Mapping[str, str], others: Sequence[str] = ()) -> None:
    """Print the notes of a conversion as one line on stderr; `others` are sentences that are not in the manifest."""
    line = "; ".join(filter(None, [summary_line(notes), *others]))
    if line:
        click.echo(f"{title}: {line}", err=True)


def read_text(file: str) -> str:
    """Read a text file in UTF-8; ``-`` is stdin.

    Raises:
        MissingFileError: it cannot be read.
        InvalidFileError: it is not UTF-8; the message states the offset.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise MissingFileError(
            f"{file}: cannot be read ({error.strerror}); give a text file, or - for stdin"
        ) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{file}: not UTF-8 at offset {error.start}; convert it to UTF-8") from error


__all__ = ["json_option", "print_json", "print_notes", "progress_bar", "read_text", "size", "table"]
