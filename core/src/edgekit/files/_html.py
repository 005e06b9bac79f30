"""Small tables for notebooks (``_repr_html_``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Largest number of rows shown.
ROWS = 60


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """Return an HTML table with a title and notes; all text is escaped, since names come from files.

    Args:
        title: shown above.
        header: of the columns; the first is aligned to the left, the others to the right.
        rows: as many cells each; of a long table the first `ROWS` are shown, with a line that says so.
        notes: lines below.
    """
    every = [list(row) for row in rows]
    left = len(every) - ROWS
    lines = [*notes, *([f"… and {left} more rows"] if left > 0 else [])]
    head = "".join(_cell("th", text, number) for number, text in enumerate(header))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, number) for number, cell in enumerate(row))}</tr>" for row in every[:ROWS]
    )
    below = "".join(f"<div>{_escape(line)}</div>" for line in lines)
    return (
        f"<div><strong>{_escape(title)}</strong></div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
    )


def _cell(tag: str, text: object, number: int) -> str:
    side = "right" if number else "left"
    return f'<{tag} style="text-align: {side}">{_escape(text)}</{tag}>'


def _escape(text: object) -> str:
    from html import escape  # only here: a first `encode` need not load HTML's named characters

    return escape(str(text))


def shape(dimensions: Sequence[int]) -> str:
    """Format a shape as ``4 × 256``."""
    return " × ".join(map(str, dimensions)) or "scalar"
