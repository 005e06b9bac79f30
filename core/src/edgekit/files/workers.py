"""A pool of threads that uses fewer if memory is short, and how many a process can use."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from edgekit.errors import MemoryShortageError
from edgekit.files.threads import Thread

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Job = tuple[Future[Any], Callable[[], None]]


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
        self._jobs, self._later = deque[_Job](), deque[_Job]()
        #: One entry for each job that was submitted, whichever it is; False ends a thread.
        self._waiting: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads: list[Thread] = []
        self._idle = threading.Semaphore(0)
        self._changing = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Submit a function call.

        Raises:
            RuntimeError: after `shutdown`.
        """
        return self._submit(self._jobs, partial(fn, *args, **kwargs))

    @property
    def later(self) -> Executor:
        """The same threads for work that can wait: it is done while no other is waiting."""
        return _Later(partial(self._submit, self._later))

    def _submit(self, jobs: deque[_Job], work: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        with self._changing:
            if self._closed:
                raise RuntimeError("cannot submit work after shutdown")
            if not self._idle.acquire(blocking=False):
                self._one_more()
            jobs.append((future, partial(_call, future, work)))
            self._waiting.put(True)
        return future

    def _next(self) -> _Job:
        """Take a job; there is one, but other threads may take it from the one place and leave theirs in the other."""
        while True:
            for jobs in (self._jobs, self._later):
                try:
                    return jobs.popleft()
                except IndexError:
                    continue

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more work, and wait for what was submitted; as `concurrent.futures.Executor.shutdown`."""
        with self._changing:
            self._closed = True
            while cancel_futures:
                try:
                    waiting = self._waiting.get_nowait()  # a thread may take the last job between a look and a `get`
                except queue.Empty:
                    break
                if waiting:
                    self._next()[0].cancel()
            for _ in self._threads:
                self._waiting.put(False)
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
        while self._waiting.get():
            job = self._next()
            job[1]()
            del job  # a result may be large, and belongs to the caller
            self._idle.release()


class _Later(Executor):
    """Submits work that can wait."""

    def __init__(self, submit: Callable[[Callable[[], Any]], Future[Any]]) -> None:
        self._submit = submit

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """As `Workers.submit`."""
        return self._submit(partial(fn, *args, **kwargs))


def _call(future: Future[_T], work: Callable[[], _T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # raised where the result is asked for
        future.set_exception(error)
        del future  # else the error would refer to itself through its traceback and this frame
    else:
        future.set_result(result)


__all__ = ["Workers", "cores"]
