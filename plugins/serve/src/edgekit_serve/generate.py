"""Generates a text for a request: in a thread, within its time, for as long as its client is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Literal

import attrs
from starlette.types import Receive

from edgekit.errors import ContextOverflowError
from edgekit.runtime import Generation
from edgekit_serve.body import present
from edgekit_serve.engine import Engine, Ticket, Work
from edgekit_serve.metrics import Metrics
from edgekit_serve.requests import Wanted
from edgekit_serve.wire import ApiError

#: Begins a text, in a thread, given how many tokens it may have.
Begin = Callable[[int | None], Generation]
#: Gets each item of a work.
Take = Callable[[Any], Awaitable[None]]


async def attended(engine: Engine, work: Work, ticket: Ticket, receive: Receive, seconds: float, take: Take) -> None:
    """Hand the items of a work to `take`, for so many seconds, while the client is there.

    Raises:
        TimeoutError: it took longer.
        ClientGoneError, ApiError: as `present` and `Engine.run`.
    """
    async with present(receive), asyncio.timeout(seconds), aclosing(engine.run(work, ticket)) as items:
        async for item in items:
            await take(item)


@attrs.define(eq=False)
class Answer:
    """A text that is being generated for a client.

    Attributes:
        engine: where.
        metrics: that count it.
        route: for the metrics.
        wanted: how long it may be.
        begin: begins it.
        seconds: that it may take, its wait included.
    """

    engine: Engine
    metrics: Metrics
    route: str
    wanted: Wanted
    begin: Begin
    seconds: float
    _ticket: Ticket = attrs.field(factory=Ticket, init=False)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, as OpenAI's API has them."""
        text = self._ticket.text or Generation(iter(()))
        total = text.prompt_tokens + text.completion_tokens
        return {
            "prompt_tokens": text.prompt_tokens,
            "completion_tokens": text.completion_tokens,
            "total_tokens": total,
        }

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """Why it ended; out of time counts as length."""
        text = self._ticket.text
        return "stop" if text is not None and text.finish_reason == "stop" else "length"

    async def give(self, receive: Receive, take: Take) -> None:
        """Hand each piece of the text to `take`. Out of time the text ends where it is, if it has begun.

        Raises:
            ApiError: 429 where the queue is full, 503 and 504 where time ran out before the first piece, or the
                runtime's error.
            ClientGoneError: the client hung up.
        """
        start, times = time.perf_counter(), list[float]()

        async def timed(piece: str) -> None:
            times[1:] = [time.perf_counter() - start]
            await take(piece)

        try:
            await attended(self.engine, self._work, self._ticket, receive, self.seconds, timed)
        except TimeoutError:
            if not times:
                raise self._too_late() from None
        finally:
            if self._ticket.text is not None:
                self.metrics.generated(self.route, self._ticket.text, times)

    def _work(self, ticket: Ticket) -> Iterator[str]:
        yield from ticket.begin(self._begin())

    def _begin(self) -> Generation:
        try:
            return self.begin(self.wanted.max_tokens)
        except ContextOverflowError:
            if self.wanted.asked or self.wanted.max_tokens is None:
                raise
            return self.begin(None)  # nobody asked for so many: what the context has room for will do

    def _too_late(self) -> ApiError:
        if self._ticket.text is None:
            return ApiError(503, "no turn came in time; try again later", "timeout", headers={"retry-after": "5"})
        return ApiError(504, f"no text came within {self.seconds:g} seconds; send a shorter prompt", "timeout")


__all__ = ["Answer", "Begin", "Take", "attended"]
