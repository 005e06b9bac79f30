"""``-o KEY=VALUE``: options that a verb hands on to what a plugin brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgekit.runtime.arguments import parse_option


def value_options(whose: str, example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds ``-o`` to a command, as the argument ``options``: a dictionary.

    Args:
        whose: who takes the options, for the help: ``the pass``.
        example: for the message of one that cannot be read.
    """

    def parsed(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
        return dict(parse_option(text, "-o", example, empty=True) for text in texts)

    return click.option(
        "-o",
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=parsed,
        help=f"An option of {whose}; the value is JSON where it can be read as such (true, 0.8, [1, 2]), else text.",
    )


__all__ = ["value_options"]
