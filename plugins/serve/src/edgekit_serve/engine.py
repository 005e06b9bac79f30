"""Schedules requests on a runtime: a bounded queue, worker threads, and cancellation if the client disconnects.

A runtime computes in threads; the server runs one event loop. A task is a generator that produces items in a thread;
`Engine.run` passes them to the loop. A slot is released only when its thread has ended.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from typing import TypeVar

import attrs

from edgekit.errors import UsageError
from edgekit.files.workers import Workers
from edgekit.runtime import Generation, Runtime
from edgekit_serve import wire
from edgekit_serve.wire import ApiError

LOG = logging.getLogger("edgekit_serve")
#: An item that a task produces: a piece of text, or a vector.
Item = TypeVar("Item")


@attrs.define(eq=False)
class Ticket:
    """The task of one request: whether it is cancelled, its running text, and the seconds that it was queued."""

    gone: threading.Event = attrs.field(factory=threading.Event)
    text: Generation | None = None
    waited: float = 0.0

    def begin(self, text: Generation) -> Generation:
        """Register the running text, so that `cancel` can end it, and return it."""
        self.text = text
        if self.gone.is_set():
            text.cancel()
        return text

    def cancel(self) -> None:
        """Cancel the task; its text ends at the next token."""
        self.gone.set()
        if self.text is not None:
            self.text.cancel()


@attrs.frozen
class _End:
    """Marks the end of a task, with its error if it failed."""

    error: ApiError | None


@attrs.define(eq=False)
class Engine:
    """A runtime, its slots and its queue.

    Attributes:
        runtime: the runtime that computes.
        parallel: number of tasks that run at the same time.
        waiting_limit: largest number of queued tasks.
        failed: called once when the runtime no longer computes.
    """

    runtime: Runtime
    parallel: int
    waiting_limit: int
    failed: Callable[[], None] = lambda: None
    well: bool = True
    admitted: int = 0
    running: int = 0
    _pool: Workers = attrs.field(init=False)
    _slots: asyncio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pool = Workers(self.parallel, "edgekit-serve")
        self._slots = asyncio.Semaphore(self.parallel)

    @property
    def waiting(self) -> int:
        """The number of queued tasks."""
        return self.admitted - self.running

    def close(self) -> None:
        """Wait for the threads to end, and close the runtime."""
        self._pool.shutdown()
        self.runtime.close()

    async def run(self, work: Generator[Item], ticket: Ticket) -> AsyncGenerator[Item]:
        """Yield the items of a task; close the generator when stopping early.

        Raises:
            ApiError: 429 if the queue is full, or the response for an error of the task.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item | _End]()
        came = time.perf_counter()
        await self._enter()
        ticket.waited = time.perf_counter() - came

        def put(item: Item | _End) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        done = loop.run_in_executor(self._pool, self._produce, work, ticket, put)
        done.add_done_callback(self._leave)
        try:
            while not isinstance(item := await items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            ticket.cancel()
            await asyncio.shield(done)

    async def _enter(self) -> None:
        if self.admitted >= self.parallel + self.waiting_limit:
            raise ApiError(429, "the server is busy; try again later", "queue_full", headers={"retry-after": "1"})
        self.admitted += 1
        try:
            await self._slots.acquire()
        except BaseException:
            self.admitted -= 1
            raise
        self.running += 1

    def _leave(self, done: asyncio.Future[None]) -> None:
        self.running -= 1
        self.admitted -= 1
        self._slots.release()

    def _produce(self, work: Generator[Item], ticket: Ticket, put: Callable[[Item | _End], None]) -> None:
        error = None
        try:
            with closing(work):  # must be closed in its own thread, before the slot is released
                for item in work:
                    if ticket.gone.is_set():
                        break
                    put(item)
        except Exception as raised:
            error = self._reply(raised)
        put(_End(error))

    def _reply(self, raised: Exception) -> ApiError:
        """Return the response for an error; the log gets type and place, not the message, which may quote prompts."""
        well = isinstance(raised, ApiError | UsageError) or self._still_well(raised)
        error = wire.of(raised, well=well)
        if error.status >= 500 or not (isinstance(raised, ApiError) or getattr(raised, "public", None)):
            place = "".join(traceback.format_tb(raised.__traceback__))
            LOG.error("%s in the runtime\n%s", type(raised).__name__, place)
        return error

    def _still_well(self, raised: Exception) -> bool:
        """Return whether the model still computes after an error that may mean that it does not."""
        if self.well:
            try:
                self.runtime.logits([0])
            except Exception:
                self.well = False
                LOG.critical("the model no longer computes after %s; the server ends", type(raised).__name__)
                self.failed()
        return self.well


__all__ = ["Engine", "Ticket"]
