"""Generates a text for a request: in a thread, until the timeout, or until the client disconnects.

The path of a request: `app.Routes` makes an `Answer`, `replies` sends its `pieces`, which come out of `Engine.run`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from typing import Literal

import attrs
from starlette.types import Receive

from edgekit.errors import ContextOverflowError
from edgekit.runtime import Generation
from edgekit_serve.body import present
from edgekit_serve.engine import Engine, Ticket
from edgekit_serve.metrics import Metrics
from edgekit_serve.requests import AnswerOptions
from edgekit_serve.wire import ApiError


@asynccontextmanager
async def attended(receive: Receive, seconds: float) -> AsyncIterator[None]:
    """Cancel the block at the timeout or when the client disconnects.

    Raises:
        TimeoutError: it took longer.
        ClientGoneError: the client hung up.
    """
    async with present(receive), asyncio.timeout(seconds):
        yield


@attrs.define(eq=False)
class Answer:
    """A text that is being generated for a client.

    Attributes:
        engine: where.
        metrics: that count it.
        route: for the metrics.
        requested: how long it may be.
        begin: begins it, in a thread, given how many tokens it may have.
        seconds: that it may take, its wait included.
    """

    engine: Engine
    metrics: Metrics
    route: str
    requested: AnswerOptions
    begin: Callable[[int | None], Generation]
    seconds: float
    _ticket: Ticket = attrs.field(factory=Ticket, init=False)
    _start: float = attrs.field(default=0.0, init=False)
    _times: list[float] = attrs.field(factory=list, init=False)

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
        """Why it ended; a timeout counts as length."""
        text = self._ticket.text
        return "stop" if text is not None and text.finish_reason == "stop" else "length"

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Count the text that is made inside. Out of time the text ends where it is, if it has begun.

        Raises:
            ApiError: 503 or 504, where time ran out before the first piece.
            ClientGoneError: the client hung up.
        """
        self._start = time.perf_counter()
        try:
            async with attended(receive, self.seconds):
                yield
        except TimeoutError:
            if not self._times:
                raise self._too_late() from None
        finally:
            if self._ticket.text is not None:
                self.metrics.generated(self.route, self._ticket.text, self._times)

    async def pieces(self) -> AsyncGenerator[str]:
        """The pieces of the text as they come; iterate inside `attended`, and close the generator when stopping early.

        Raises:
            ApiError: 429 where the queue is full, or the runtime's error.
        """
        async with aclosing(self.engine.run(self._text(), self._ticket)) as pieces:
            async for piece in pieces:
                self._times[1:] = [time.perf_counter() - self._start]
                yield piece

    def _text(self) -> Generator[str]:
        """The text, begun in the thread that asks for its first piece."""
        yield from self._ticket.begin(self._begin())

    def _begin(self) -> Generation:
        try:
            return self.begin(self.requested.max_tokens)
        except ContextOverflowError:
            if self.requested.asked or self.requested.max_tokens is None:
                raise
            return self.begin(None)  # nobody asked for so many: what the context has room for will do

    def _too_late(self) -> ApiError:
        if self._ticket.text is None:
            return ApiError(503, "no turn came in time; try again later", "timeout", headers={"retry-after": "5"})
        return ApiError(504, f"no text came within {self.seconds:g} seconds; send a shorter prompt", "timeout")


__all__ = ["Answer", "attended"]
