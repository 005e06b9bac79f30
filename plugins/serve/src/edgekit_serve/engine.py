"""Lets requests take turns on a runtime: a bounded queue, worker threads, and cancellation if the client disconnects.

A runtime computes in threads; the server talks in one event loop. Work is a generator that makes items in a thread;
`Engine.run` hands them to the loop as they come. A slot is free again when its thread has ended, never before.
"""

from __future__ import annotations

import asyncio
import logging
import threading
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
#: What a work makes: a piece of text, or a vector.
Item = TypeVar("Item")


@attrs.define(eq=False)
class Ticket:
    """One request's work: whether it is cancelled, and its text."""

    gone: threading.Event = attrs.field(factory=threading.Event)
    text: Generation | None = None

    def begin(self, text: Generation) -> Generation:
        """Remember the text, so that it ends when the work is cancelled."""
        self.text = text
        if self.gone.is_set():
            text.cancel()
        return text

    def cancel(self) -> None:
        """Cancel the work; its text ends at the next token."""
        self.gone.set()
        if self.text is not None:
            self.text.cancel()


@attrs.frozen
class _End:
    """The last item of a work: how it ended."""

    error: ApiError | None


@attrs.define(eq=False)
class Engine:
    """A runtime, its slots and its queue.

    Attributes:
        runtime: what computes.
        parallel: works at the same time.
        waiting_limit: works that wait.
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
        """Number of queued works."""
        return self.admitted - self.running

    def close(self) -> None:
        """Wait for the threads, and release the model."""
        self._pool.shutdown()
        self.runtime.close()

    async def run(self, work: Generator[Item], ticket: Ticket) -> AsyncGenerator[Item]:
        """The items of a work, as they come; to be closed by who leaves early.

        Raises:
            ApiError: 429 where the queue is full; what the work raises, as it looks on the wire.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item | _End]()
        await self._enter()

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
            with closing(work):  # here, in its thread, and before the slot is free
                for item in work:
                    if ticket.gone.is_set():
                        break
                    put(item)
        except Exception as raised:
            error = self._told(raised)
        put(_End(error))

    def _told(self, raised: Exception) -> ApiError:
        """An error as the client sees it; the log gets kind and place, never the message: that may quote a prompt."""
        well = isinstance(raised, ApiError | UsageError) or self._still_well(raised)
        told = wire.of(raised, well=well)
        if told.status >= 500 or not (isinstance(raised, ApiError) or getattr(raised, "public", None)):
            place = "".join(traceback.format_tb(raised.__traceback__))
            LOG.error("%s in the runtime\n%s", type(raised).__name__, place)
        return told

    def _still_well(self, raised: Exception) -> bool:
        """Whether the model still computes, after an error that may mean that it does not."""
        if self.well:
            try:
                self.runtime.logits([0])
            except Exception:
                self.well = False
                LOG.critical("the model no longer computes after %s; the server ends", type(raised).__name__)
                self.failed()
        return self.well


__all__ = ["Engine", "Ticket"]
