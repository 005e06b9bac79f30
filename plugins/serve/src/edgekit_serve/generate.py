"""Generates the texts of a request: in a thread, until the timeout, or until the client disconnects.

The path of a request: `routes.Routes` creates an `Answer`, `replies` sends its `pieces`, which `Engine.run` yields.
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
from edgekit_serve.metrics import ModelMetrics
from edgekit_serve.outcomes import Outcome, confidence, refuses
from edgekit_serve.requests import AnswerOptions
from edgekit_serve.wire import ApiError

#: Key of a request's `Answer` in its scope.
ANSWER = "edgekit_serve.answer"
#: Starts to generate a text, given its largest number of tokens.
Begin = Callable[[int | None], Generation | Reply]


@asynccontextmanager
async def attended(receive: Receive, seconds: float) -> AsyncIterator[None]:
    """Cancel the block at the timeout or when the client disconnects.

    Raises:
        TimeoutError: the block took longer than `seconds`.
        ClientGoneError: the client disconnected.
    """
    async with present(receive), asyncio.timeout(seconds):
        yield


@attrs.frozen
class Asked:
    """One requested text.

    Attributes:
        begin: starts the text; called in the thread that generates it.
        prompt: index of its prompt in the request.
        echo: returns the text to send first and its tokens' scores; called in the same thread. None without echo.
    """

    begin: Begin
    prompt: int = 0
    echo: Callable[[], tuple[str, list[TokenScore]]] | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Piece:
    """A newly generated part of one of the texts.

    Attributes:
        index: index of the text in the answer.
        part: the new part; None at the end of the text.
        scores: the scores of the new tokens.
        call: the tool call that starts with this part, if one does.
        reason: the finish reason, at the end of the text.
    """

    index: int
    part: Part | None
    scores: Sequence[TokenScore] = ()
    call: ToolCall | None = None
    reason: str | None = None


@attrs.define(eq=False)
class Text:
    """The part of one text that has been generated so far.

    Attributes:
        parts: its parts in order.
        scores: the scores of its tokens.
        calls: its tool calls.
        reason: the finish reason; ``length`` for a timeout.
        ended: whether the text is complete.
    """

    parts: list[Part] = attrs.field(factory=list)
    scores: list[TokenScore] = attrs.field(factory=list)
    calls: list[ToolCall] = attrs.field(factory=list)
    reason: str = "length"
    ended: bool = False

    def joined(self, kind: str) -> str:
        """Return the joined parts of one kind: text or reasoning."""
        return "".join(part.text for part in self.parts if part.kind == kind)

    def add(self, piece: Piece) -> None:
        """Add a piece of this text."""
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
        engine: the engine that generates the texts.
        metrics: the metrics in which the request is counted.
        route: name of the route in the metrics.
        requested: the generation options.
        asked: the requested texts.
        seconds: time limit, including the time in the queue.
        texts: the generated texts, up to the last piece sent.
    """

    engine: Engine
    metrics: ModelMetrics
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
        """The number of tokens in the prompts; a prompt with several texts counts once."""
        counted = {asked.prompt: text.prompt_tokens for asked, text in zip(self.asked, self._begun, strict=False)}
        return sum(counted.values())

    @property
    def completion_tokens(self) -> int:
        """The number of generated tokens in all texts."""
        return sum(text.completion_tokens for text in self._begun)

    @property
    def queue_seconds(self) -> float:
        """The seconds that the request waited for its turn."""
        return self._ticket.waited

    @property
    def outcomes(self) -> list[Outcome]:
        """What is recorded of each text that is complete."""
        return [
            Outcome(begun.completion_tokens, text.reason, refuses(text.joined("text")), confidence(begun.scores))
            for text, begun in zip(self.texts, self._begun, strict=False)
            if text.ended
        ]

    @property
    def usage(self) -> dict[str, int]:
        """The token counts in the form of OpenAI's API."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Count the texts that are generated in the block; at the timeout, end them where they are.

        Raises:
            ApiError: 503 or 504, if the timeout comes before the first piece.
            ClientGoneError: the client disconnected.
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
                self.metrics.ended(self.outcomes)

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Yield the pieces of the texts; iterate inside `attended`, and close the generator when stopping early.

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
        """Yield the pieces of one text; it is generated in the thread that iterates."""
        if asked.echo is not None:
            said, scores = asked.echo()
            yield Piece(index, Part("text", said), scores)
        text = self._begin(asked.begin)
        generation, parts = (text.generation, text) if isinstance(text, Reply) else (text, _plain(text))
        self._begun.append(self._ticket.begin(generation))
        sent = 0
        shown = self.requested.options.get("logprobs") is not None  # else they are there for the confidence only
        with closing(text):  # must be closed in this thread, before the slot is released
            for part in parts:
                scores, sent = generation.scores[sent:] if shown else [], len(generation.scores)
                call = text.calls[-1] if part.kind == "call" and isinstance(text, Reply) else None
                yield Piece(index, part, scores, call)
        yield Piece(index, None, generation.scores[sent:] if shown else [], reason=text.finish_reason)

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


__all__ = ["ANSWER", "Answer", "Asked", "Begin", "Piece", "Text", "attended"]
