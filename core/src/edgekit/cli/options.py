"""Options that several commands of edgekit and of plugins have."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import click

from edgekit.pipeline.executors import connected
from edgekit.runtime.arguments import parse_option

_Command = TypeVar("_Command", bound=Callable[..., Any])


def context_option(least: int = 2) -> Callable[[_Command], _Command]:
    """Return a decorator that adds ``--context`` to a command, as the argument ``context``; None is the default.

    Args:
        least: smallest number of tokens of a window.
    """
    return click.option(
        "--context",
        type=click.IntRange(min=least),
        help="Tokens in a window; default: 512, or the model's context if that is less.",
    )


def executor_option(verb: str) -> Callable[[_Command], _Command]:
    """Return a decorator that adds ``--executor`` to a command, as the argument ``executor``; None is here.

    Args:
        verb: what the workers do, for the help.
    """
    return click.option(
        "--executor",
        metavar="ADDRESS",
        help=f"Where to {verb}: dask://HOST:PORT, ray://HOST:PORT, ray:, mpi: or processes:N; default: threads here.",
    )


def workers_at(address: str | None) -> AbstractContextManager[Executor | None]:
    """Connect to the executor of an address (`edgekit.pipeline.executors.connected`); None without one."""
    return nullcontext() if address is None else connected(address)


def rounding_options(command: _Command) -> _Command:
    """Add ``--calibration``, ``--rounding`` and ``--context`` to a command that measures, under those names."""
    calibration = click.option(
        "--calibration", metavar="FILE", help="Of another text, or another part; default: a part of --text."
    )
    rounding = click.option(
        "--rounding",
        type=click.Choice(["nearest", "feedback"]),
        default="feedback",
        show_default=True,
        help="How to choose codes.",
    )
    return calibration(rounding(context_option(3)(command)))


def runtime_options(command: _Command) -> _Command:
    """Add ``--runtime`` and ``--option`` to a command, as the arguments ``runtime`` and ``options``.

    ``options`` is a tuple of texts; `edgekit.runtime.parse_option` splits each into a name and a value.
    """
    option = click.option(
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of the runtime, such as context=2048.",
    )
    runtime = click.option(
        "--runtime", metavar="NAME", help="Runtime; the default is the fastest that runs the format."
    )
    return runtime(option(command))


def value_options(whose: str, example: str) -> Callable[[_Command], _Command]:
    """Return a decorator that adds ``-o`` to a command, as the argument ``options``: a dictionary.

    Args:
        whose: the object that takes the options, for the help: ``the pass``.
        example: of an option, for the message of a malformed one.
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


__all__ = ["context_option", "executor_option", "rounding_options", "runtime_options", "value_options", "workers_at"]
