"""The library's warnings, as the command line shows them: one line each on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click


class _Stderr(logging.Handler):
    """Writes ``edgekit: MESSAGE``, or ``edgekit-numba: MESSAGE`` for the logger ``edgekit.numba``."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.name.replace('.', '-')}: {record.getMessage()}", err=True)


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """Show what is logged under ``edgekit`` at the level WARNING and above, as long as the command runs."""
    logger, handler = logging.getLogger("edgekit"), _Stderr(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
