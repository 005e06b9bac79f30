"""Generates the texts of a request: in a thread, until the timeout, or until the client disconnects.

The path of a request: `app.Routes` creates an `Answer`, `replies` sends its `pieces`, which `Engine.run` yields.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing

import attrs
from starlette.types import Receive

from edgekit.errors import ContextOverflowError
from edgekit.runtime import Generation, Part, Reply, TokenScore, ToolCall
from edgekit_serve.body import present
from edgekit_serve.engine import Engine, Ticket
from edgekit_serve.metrics import Metrics
from edgekit_serve.requests import AnswerOptions
from edgekit_serve.wire import ApiError

#: Begins a text, given how many tokens it may have.
Begin = Callable[[int | None], Generation | Reply]


@asynccontextmanager
async def attended(receive: Receive, seconds: float) -> AsyncIterator[None]:
    """Cancel the block at the timeout or when the client disconnects.

    Raises:
        TimeoutError: it took longer.
        ClientGoneError: the client hung up.
    """
    async with present(receive), asyncio.timeout(seconds):
        yield


@attrs.frozen
class Asked:
    """One text of a request.

    Attributes:
        begin: begins it, in the thread that generates.
        prompt: number of its prompt among the request's.
        echo: gives what is sent before the text, and its scores; called in that thread. None for nothing.
    """

    begin: Begin
    prompt: int = 0
    echo: Callable[[], tuple[str, list[TokenScore]]] | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Piece:
    """A part of one of the texts.

    Attributes:
        index: of the text.
        part: what is new; None at the end of the text.
        scores: of the tokens that are new.
        call: the call that a part begins.
        reason: at the end of the text, why it ended.
    """

    index: int
    part: Part | None
    scores: Sequence[TokenScore] = ()
    call: ToolCall | None = None
    reason: str | None = None


@attrs.define(eq=False)
class Text:
    """One text of an answer as far as it has come.

    Attributes:
        parts: of it, in order.
        scores: of its tokens.
        calls: of tools.
        reason: why it ended; a timeout counts as length.
        ended: whether it has.
    """

    parts: list[Part] = attrs.field(factory=list)
    scores: list[TokenScore] = attrs.field(factory=list)
    calls: list[ToolCall] = attrs.field(factory=list)
    reason: str = "length"
    ended: bool = False

    def joined(self, kind: str) -> str:
        """All of its text, or of its reasoning."""
        return "".join(part.text for part in self.parts if part.kind == kind)

    def add(self, piece: Piece) -> None:
        """Take a piece that was sent."""
        self.scores += piece.scores
        if piece.part is None:
            self.reason, self.ended = piece.reason or "length", True
            return
        self.parts.append(piece.part)
        if piece.call is not None:
            self.calls.append(attrs.evolve(piece.call, arguments=""))
        elif piece.part.kind == "arguments":
            self.calls[piece.part.call].arguments += piece.part.text


@attrs.define(eq=False)
class Answer:
    """The texts that are generated for a request, one after the other.

    Attributes:
        engine: that generates it.
        metrics: that count it.
        route: for the metrics.
        requested: how long the texts may be.
        asked: the texts.
        seconds: time limit, including the time in the queue.
        texts: as far as they have been sent.
    """

    engine: Engine
    metrics: Metrics
    route: str
    requested: AnswerOptions
    asked: Sequence[Asked]
    seconds: float
    texts: list[Text] = attrs.field(init=False)
    _ticket: Ticket = attrs.field(factory=Ticket, init=False)
    _begun: list[Generation] = attrs.field(factory=list, init=False)
    _start: float = attrs.field(default=0.0, init=False)
    _times: list[float] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.texts = [Text() for _ in self.asked]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once, however many texts follow it."""
        counted = {asked.prompt: text.prompt_tokens for asked, text in zip(self.asked, self._begun, strict=False)}
        return sum(counted.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens generated."""
        return sum(text.completion_tokens for text in self._begun)

    @property
    def usage(self) -> dict[str, int]:
        """Return the token counts in the form of OpenAI's API."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Count the texts that are made inside. Out of time they end where they are, if one has begun.

        Raises:
            ApiError: 503 or 504, if the timeout came before the first piece.
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
            if self._begun:
                self.metrics.generated(self.route, self.prompt_tokens, self.completion_tokens, self._times)
                self.metrics.waited(self._ticket.waited)

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The pieces of the texts as they come; iterate inside `attended`, and close the generator when stopping early.

        Raises:
            ApiError: 429 if the queue is full, or the runtime's error.
        """
        async with aclosing(self.engine.run(self._all(), self._ticket)) as pieces:
            async for piece in pieces:
                if piece.part is not None:
                    self._times[1:] = [time.perf_counter() - self._start]
                self.texts[piece.index].add(piece)
                yield piece

    def _all(self) -> Generator[Piece]:
        for index, asked in enumerate(self.asked):
            yield from self._text(index, asked)

    def _text(self, index: int, asked: Asked) -> Generator[Piece]:
        """A text, begun in the thread that asks for its first piece."""
        if asked.echo is not None:
            said, scores = asked.echo()
            yield Piece(index, Part("text", said), scores)
        text = self._begin(asked.begin)
        generation, parts = (text.generation, text) if isinstance(text, Reply) else (text, _plain(text))
        self._begun.append(self._ticket.begin(generation))
        sent = 0
        with closing(text):  # in this thread, before the slot is free
            for part in parts:
                scores, sent = generation.scores[sent:], len(generation.scores)
                call = text.calls[-1] if part.kind == "call" and isinstance(text, Reply) else None
                yield Piece(index, part, scores, call)
        yield Piece(index, None, generation.scores[sent:], reason=text.finish_reason)

    def _begin(self, begin: Begin) -> Generation | Reply:
        try:
            return begin(self.requested.max_tokens)
        except ContextOverflowError:
            if self.requested.asked or self.requested.max_tokens is None:
                raise
            return begin(None)  # the client set no limit: use the rest of the context

    def _too_late(self) -> ApiError:
        if self._ticket.text is None:
            return ApiError(503, "no turn came in time; try again later", "timeout", headers={"retry-after": "5"})
        return ApiError(504, f"no text came within {self.seconds:g} seconds; send a shorter prompt", "timeout")


def _plain(text: Generation) -> Iterator[Part]:
    return (Part("text", piece) for piece in text)


__all__ = ["Answer", "Asked", "Begin", "Piece", "Text", "attended"]
