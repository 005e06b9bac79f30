"""A thread that computes with MLX.

MLX's streams belong to the thread that created them, and each has a C++ thread of its own. If a Python thread ends
shortly before the process does, that C++ thread can be destroyed while it runs, which aborts the process (MLX 0.32.4,
in one of twelve runs). So a worker destroys its streams before it ends, and ends before the interpreter does.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from edgekit_mlx.library import core

_T = TypeVar("_T")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class Worker:
    """Runs functions one after the other in its own thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed, self._process = False, os.getpid()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="edgekit-mlx", daemon=True)
        self._thread.start()
        _WORKERS.add(self)

    def run(self, job: Callable[[], _T]) -> _T:
        """Call a function in the thread, and return its result or raise its error.

        Raises:
            ClosedError: the worker is closed, or this process is a fork and does not have the thread.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._closed or os.getpid() != self._process:
                raise ClosedError("the worker is closed")
            self._jobs.put((job, future))
        return future.result()

    def close(self) -> None:
        """Destroy the thread's streams and end it; may be called more than once."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._jobs.put(None)
        if os.getpid() == self._process and threading.current_thread() is not self._thread:
            self._thread.join()

    def __del__(self) -> None:
        self._jobs.put(None)


class ClosedError(RuntimeError):
    """The worker is closed and no longer runs functions."""


#: The workers that may still run when the interpreter exits.
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        function, future = job
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
        del job, function, future  # free a model's memory now, not when the next function comes
    with contextlib.suppress(Exception):  # MLX is not installed, or has no such function
        core().clear_streams()


def shared() -> Worker:
    """Return the process's shared worker, for encoders and decoders, which hold no model."""
    return _shared(os.getpid())


@functools.cache
def _shared(process: int) -> Worker:
    return Worker()


@atexit.register
def _close_all() -> None:
    for worker in list(_WORKERS):
        worker.close()


__all__ = ["ClosedError", "Worker", "shared"]
