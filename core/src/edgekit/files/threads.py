"""Threads whose start raises, and does not hang, if memory runs out.

A thread needs address space for its stack, and memory for its first Python frame. If the frame
cannot be allocated, the thread ends before it reports that it runs, and `threading.Thread.start` waits forever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from edgekit.files.memory import refuse_shortage, shortage

#: Time limit in seconds for a thread to report that it runs, which normally takes microseconds.
PATIENCE = 10.0


class _Begun(threading.Event):
    """What `threading.Thread.start` waits for, with a limit."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(PATIENCE if timeout is None else timeout)


class Thread(threading.Thread):
    """A daemon thread that starts, or raises.

    Example:
        >>> words = []
        >>> thread = Thread(target=words.append, args=("hello",), name="greeting")
        >>> thread.start()
        >>> thread.join()
        >>> words
        ['hello']

    Args:
        target, name, args: as for `threading.Thread`.
    """

    def __init__(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)
        self._decided = threading.Lock()
        # CPython's own event, which `start` waits for.
        self._started = _Begun()

    def start(self) -> None:
        """Start it, and wait until it runs.

        Raises:
            MemoryShortageError: there is no memory for it. Its target is not called, then or later.
        """
        what = f"starting the thread {self.name!r}"
        try:
            super().start()
        except (RuntimeError, MemoryError) as error:
            refuse_shortage(error, what, _stack())
            raise
        if not self._started.is_set() and self._decided.acquire(blocking=False):
            raise shortage(what, _stack(), least=True)

    def run(self) -> None:
        """Call the target, unless `start` has raised."""
        if self._decided.acquire(blocking=False):
            super().run()


def _stack() -> int | None:
    """Return the bytes of address space of a thread's stack; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return threading.stack_size() or None
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return threading.stack_size() or (None if limit == resource.RLIM_INFINITY else limit)


__all__ = ["PATIENCE", "Thread"]
