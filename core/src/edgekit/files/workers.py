"""A pool of threads that uses fewer if memory is short, and how many a process can use."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from edgekit.errors import MemoryShortageError
from edgekit.files.threads import Thread

_P = ParamSpec("_P")
_T = TypeVar("_T")


def cores() -> int:
    """Return how many cores this process may use, by its affinity (`taskset`, a container's set of processors)."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Workers(Executor):
    """A pool of threads, started as work is submitted; it uses fewer if memory does not allow more.

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
        """Submit a function call.

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
        """Accept no more work, and wait for what was submitted; as `concurrent.futures.Executor.shutdown`."""
        with self._changing:
            self._closed = True
            while cancel_futures:
                try:
                    job = self._jobs.get_nowait()  # a thread may take the last job between a look and a `get`
                except queue.Empty:
                    break
                if job is not None:
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
        del future  # else the error would refer to itself through its traceback and this frame
    else:
        future.set_result(result)


__all__ = ["Workers", "cores"]
