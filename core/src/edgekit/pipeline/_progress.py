"""Progress of a long run: a callback, or a bar on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with the number of steps done, the total, and the name of the next step.
Progress = Callable[[int, int, str], None]
#: The values of ``progress=``: a callback; True for a bar on stderr; None or False for no report.
Shown = Progress | bool | None

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Return a callback that draws a bar if rich and a terminal or notebook are available; else prints a few lines."""
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:
        yield _lines(title)
        return
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _lines(title)
        return
    with Bar(console=console, transient=True) as drawn:
        task = drawn.add_task(title, total=None)

        def report(done: int, total: int, what: str) -> None:
            drawn.update(task, completed=done, total=total, description=f"{title} {what}"[:60])

        yield report


@contextmanager
def reporting(progress: Shown, title: str) -> Iterator[Progress | None]:
    """Yield the callback that ``progress=`` stands for, or None; a bar ends with the block."""
    if progress is True:
        with bar(title) as report:
            yield report
    else:
        yield progress or None


def _lines(title: str) -> Progress:
    """Return a callback that prints the first line, the last, and one every few seconds between them."""
    shown = -math.inf

    def report(done: int, total: int, what: str) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown >= _SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            print(f"{title}: {done}/{total} {what}".rstrip(), file=sys.stderr, flush=True)

    return report


__all__ = ["Progress", "Shown", "bar", "reporting"]
