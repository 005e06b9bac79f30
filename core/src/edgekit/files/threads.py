"""Threads whose start fails, and does not hang, where memory runs out.

A thread needs address space for its stack, and memory for its first Python frame. Where it gets the stack but not the
frame, it ends before it has reported that it runs, and `threading.Thread.start` waits for that report without end.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from edgekit.errors import MemoryShortageError
from edgekit.files.memory import refuse_shortage, shortage

#: Seconds in which a thread has to report that it runs. It takes microseconds; a busy machine may take longer.
PATIENCE = 10.0
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Begun(threading.Event):
    """What `threading.Thread.start` waits for, with a limit."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(PATIENCE if timeout is None else timeout)


class Thread(threading.Thread):
    """A daemon thread that starts, or raises.

    Example:
        >>> thread = Thread(target=print, args=("hello",), name="greeting")
        >>> thread.start()
        hello
        >>> thread.join()

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
        """Call the target, unless `start` has raised meanwhile."""
        if self._decided.acquire(blocking=False):
            super().run()


def _stack() -> int | None:
    """The bytes of address space that a thread's stack takes; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return threading.stack_size() or None
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return threading.stack_size() or (None if limit == resource.RLIM_INFINITY else limit)


class Workers(Executor):
    """A pool of threads, started as work comes in; it makes do with fewer where memory allows no more.

    Example:
        >>> with Workers(4) as pool:
        ...     list(pool.map(abs, [-1, 2]))
        [1, 2]

    Args:
        count: the most threads at a time, at least 1.
        name: the threads' names begin with it.

    Raises:
        MemoryShortageError: by `submit`, where memory does not allow a single thread.
    """

    def __init__(self, count: int, name: str = "edgekit") -> None:
        self._most, self._name = max(1, count), name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], None]] | None] = queue.SimpleQueue()
        self._threads: list[Thread] = []
        self._idle = threading.Semaphore(0)
        self._changing = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have a thread call a function.

        Raises:
            RuntimeError: after `shutdown`.
        """
        future: Future[_T] = Future()
        with self._changing:
            if self._closed:
                raise RuntimeError("cannot submit work after shutdown")
            if not self._idle.acquire(blocking=False):
                self._one_more()
            self._jobs.put((future, partial(_call, future, fn, args, kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and wait for what is there; as `concurrent.futures.Executor.shutdown`."""
        with self._changing:
            self._closed = True
            while cancel_futures and not self._jobs.empty():
                if (job := self._jobs.get()) is not None:
                    job[0].cancel()
            for _ in self._threads:
                self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _one_more(self) -> None:
        if len(self._threads) >= self._most:
            return
        thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}")
        try:
            thread.start()
        except MemoryShortageError:
            if not self._threads:
                raise
            self._most = len(self._threads)
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job[1]()
            del job  # a result may be large, and belongs to the caller
            self._idle.release()


def _call(future: Future[_T], function: Callable[..., _T], args: Any, kwargs: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args, **kwargs)
    except BaseException as error:  # raised where the result is asked for
        future.set_exception(error)
        del future  # or the error would hold itself, through its traceback and this frame
    else:
        future.set_result(result)


__all__ = ["PATIENCE", "Thread", "Workers"]
