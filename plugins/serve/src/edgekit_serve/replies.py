"""What the server answers: OpenAI's objects, whole or piece by piece as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import attrs
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit_serve.generate import Answer
from edgekit_serve.wire import HEADERS, ApiError

_EVENTS = {**HEADERS, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


@attrs.define
class Shape:
    """How an answer looks; `Completion` and `Chat` fill it in.

    Attributes:
        model: its name.
        identifier: of the answer.
        created: when, in seconds since 1970.
    """

    model: str
    identifier: str = attrs.field(init=False)
    created: int = attrs.field(factory=lambda: int(time.time()), init=False)

    kind = ""
    part = ""
    prefix = ""

    def __attrs_post_init__(self) -> None:
        self.identifier = f"{self.prefix}-{secrets.token_hex(12)}"

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        """The answer at once."""
        choice = self._choice(self.said(text), answer.finish_reason)
        return {**self._head(self.kind), "choices": [choice], "usage": answer.usage}

    def first(self) -> Iterator[dict[str, Any]]:
        """What is sent before the first piece."""
        return iter(())

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the text."""
        return self._event(self._choice(self.added(text), None))

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Why it ended, and the token counts if requested."""
        yield self._event(self._choice(self.added(""), answer.finish_reason))
        if answer.requested.usage:
            yield {**self._head(self.part), "choices": [], "usage": answer.usage}

    def said(self, text: str) -> dict[str, Any]:
        """A choice's text."""
        raise NotImplementedError

    def added(self, text: str) -> dict[str, Any]:
        """A choice's new text."""
        raise NotImplementedError

    def _event(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(self.part), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.identifier, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, text: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **text, "logprobs": None, "finish_reason": reason}


class Completion(Shape):
    """Of ``/v1/completions``."""

    kind = part = "text_completion"
    prefix = "cmpl"

    def said(self, text: str) -> dict[str, Any]:
        """A text."""
        return {"text": text}

    added = said


class Chat(Shape):
    """Of ``/v1/chat/completions``."""

    kind = "chat.completion"
    part = "chat.completion.chunk"
    prefix = "chatcmpl"

    def said(self, text: str) -> dict[str, Any]:
        """A message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def added(self, text: str) -> dict[str, Any]:
        """A part of a message."""
        return {"delta": {"content": text} if text else {}}

    def first(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        yield self._event(self._choice({"delta": {"role": "assistant", "content": ""}}, None))


def reply(answer: Answer, shape: Shape) -> Response:
    """The response to a request for text."""
    return Events(answer, shape) if answer.requested.stream else Whole(answer, shape)


class Whole(Response):
    """The answer at once."""

    def __init__(self, answer: Answer, shape: Shape) -> None:
        self.answer, self.shape, self.background = answer, shape, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate, then send."""
        text: list[str] = []
        async with self.answer.attended(receive), aclosing(self.answer.pieces()) as pieces:
            async for piece in pieces:
                text.append(piece)  # noqa: PERF401  - out of time, what has come is the answer
        await JSONResponse(self.shape.whole("".join(text), self.answer), headers=HEADERS)(scope, receive, send)


class Events(Response):
    """The answer piece by piece. An error before the first piece is an error response; after it, an event."""

    def __init__(self, answer: Answer, shape: Shape) -> None:
        self.answer, self.shape, self.background = answer, shape, None
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send pieces as they come."""
        try:
            async with self.answer.attended(receive), aclosing(self.answer.pieces()) as pieces:
                async for piece in pieces:
                    await self._begin(send)
                    await _send(send, self.shape.piece(piece))
        except ApiError as error:
            if not self.begun:
                raise
            await _send(send, error.body())
        else:
            await self._begin(send)
            for event in self.shape.last(self.answer):
                await _send(send, event)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _begin(self, send: Send) -> None:
        if self.begun:
            return
        self.begun = True
        headers = [(name.encode(), value.encode()) for name, value in _EVENTS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in self.shape.first():
            await _send(send, event)


async def _send(send: Send, event: dict[str, Any]) -> None:
    data = f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
    await send({"type": "http.response.body", "body": data.encode(), "more_body": True})


__all__ = ["Chat", "Completion", "Events", "Shape", "Whole", "reply"]
