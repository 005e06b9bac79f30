"""Sends answers in the form of OpenAI's API: as one JSON object or as server-sent events."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing

import attrs
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit.runtime import TokenScore
from edgekit_serve.generate import Answer, Piece, Text
from edgekit_serve.wire import HEADERS, ApiError, Json

_EVENTS = {**HEADERS, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
#: The data of a server-sent event; a named event has its name in the key ``type``.
Event = Json


@attrs.define
class Shape:
    """The form of an answer; `Completion`, `Chat` and the forms of other APIs derive from it.

    Attributes:
        model: the model's name.
        identifier: the answer's identifier.
        created: time of the answer, in seconds since 1970.
    """

    model: str
    identifier: str = attrs.field(init=False)
    created: int = attrs.field(factory=lambda: int(time.time()), init=False)

    prefix = ""
    #: Whether events are named by their ``type``; such a stream has no ``[DONE]`` event.
    named = False

    def __attrs_post_init__(self) -> None:
        self.identifier = f"{self.prefix}{secrets.token_hex(12)}"

    def whole(self, answer: Answer) -> Json:
        """Return the whole answer as one object."""
        raise NotImplementedError

    def first(self, answer: Answer) -> Iterator[Event]:
        """Yield the events before the first piece."""
        return iter(())

    def piece(self, piece: Piece, answer: Answer) -> Iterator[Event]:
        """Yield the events of a piece, or of a text's end."""
        raise NotImplementedError

    def last(self, answer: Answer) -> Iterator[Event]:
        """Yield the events after the last piece."""
        return iter(())

    def failed(self, error: ApiError) -> Event:
        """Return the event for an error after the first piece."""
        return error.body()


class _Choices(Shape):
    """The forms whose texts are ``choices``."""

    kind = ""
    part = ""

    def whole(self, answer: Answer) -> Json:
        """Return the whole answer as one object."""
        choices = [self._whole(index, text) for index, text in enumerate(answer.texts)]
        return {**self._head(self.kind), "choices": choices, "usage": answer.usage}

    def piece(self, piece: Piece, answer: Answer) -> Iterator[Event]:
        """Yield the event of a piece of a choice, or of its end, with the finish reason."""
        if piece.part is not None or piece.scores:
            yield self._event(piece.index, self.added(piece), self.scored(piece.scores, piece.index), None)
        if piece.part is None:
            yield self._event(piece.index, self.added(piece), None, answer.texts[piece.index].reason)

    def last(self, answer: Answer) -> Iterator[Event]:
        """Yield the end of each choice that the timeout cut off, and the token counts if requested."""
        for index, text in enumerate(answer.texts):
            if not text.ended:
                yield self._event(index, self.added(Piece(index, None)), None, text.reason)
        if answer.requested.usage:
            yield {**self._head(self.part), "choices": [], "usage": answer.usage}

    def said(self, text: Text) -> Json:
        """Return the fields of a choice with the whole text."""
        raise NotImplementedError

    def added(self, piece: Piece) -> Json:
        """Return the fields of a choice with the new text of a piece."""
        raise NotImplementedError

    def scored(self, scores: Sequence[TokenScore], index: int = 0) -> Json | None:
        """Return the tokens' scores in the API's form; None if they were not requested."""
        raise NotImplementedError

    def _whole(self, index: int, text: Text) -> Json:
        return {"index": index, **self.said(text), "logprobs": self.scored(text.scores), "finish_reason": text.reason}

    def _event(self, index: int, text: Json, scores: Json | None, reason: str | None) -> Event:
        choice = {"index": index, **text, "logprobs": scores, "finish_reason": reason}
        return {**self._head(self.part), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.identifier, "object": kind, "created": self.created, "model": self.model}


@attrs.define
class Completion(_Choices):
    """The form of answers to ``/v1/completions``."""

    offsets: dict[int, int] = attrs.field(factory=dict, init=False)

    kind = part = "text_completion"
    prefix = "cmpl-"

    def said(self, text: Text) -> Json:
        """Return the whole text as ``text``."""
        return {"text": text.joined("text")}

    def added(self, piece: Piece) -> Json:
        """Return the new text as ``text``."""
        return {"text": piece.part.text if piece.part is not None else ""}

    def scored(self, scores: Sequence[TokenScore], index: int = 0) -> Json | None:
        """Return lists of tokens, log probabilities, alternatives, and offsets in the text; None without scores.

        The first token of a prompt has no log probability.
        """
        if not scores:
            return None
        tokens = [_name(score.text) for score in scores]
        offsets = []
        for score in scores:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(score.text.decode("utf-8", "replace"))
        known = [not math.isnan(score.logprob) for score in scores]
        tops = [{_name(top.text): top.logprob for top in score.top} for score in scores]
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob if one else None for score, one in zip(scores, known, strict=True)],
            "top_logprobs": [top if one else None for top, one in zip(tops, known, strict=True)],
            "text_offset": offsets,
        }


class Chat(_Choices):
    """The form of answers to ``/v1/chat/completions``."""

    kind = "chat.completion"
    part = "chat.completion.chunk"
    prefix = "chatcmpl-"

    def said(self, text: Text) -> Json:
        """Return the whole text as ``message``, with reasoning and tool calls."""
        content = text.joined("text")
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := text.joined("reasoning"):
            message["reasoning_content"] = reasoning
        if text.calls:
            message |= {"content": content or None, "tool_calls": [call.to_dict() for call in text.calls]}
        return {"message": message}

    def added(self, piece: Piece) -> Json:
        """Return the new part as ``delta``."""
        return {"delta": _delta(piece)}

    def scored(self, scores: Sequence[TokenScore], index: int = 0) -> Json | None:
        """Return the scores as ``content``, a list of tokens with alternatives; None without scores."""
        if not scores:
            return None
        content = [{**_scored(score), "top_logprobs": [_scored(top) for top in score.top]} for score in scores]
        return {"content": content, "refusal": None}

    def first(self, answer: Answer) -> Iterator[Event]:
        """Yield one event per choice with the role ``assistant``."""
        for index in range(len(answer.texts)):
            yield self._event(index, {"delta": {"role": "assistant", "content": ""}}, None, None)


def _delta(piece: Piece) -> Json:
    part = piece.part
    if part is None or not part.text:
        return {}
    if part.kind == "text":
        return {"content": part.text}
    if part.kind == "reasoning":
        return {"reasoning_content": part.text}
    if piece.call is not None:
        begun = {"index": part.call, "id": piece.call.id, "type": "function"}
        return {"tool_calls": [{**begun, "function": {"name": part.text, "arguments": ""}}]}
    return {"tool_calls": [{"index": part.call, "function": {"arguments": part.text}}]}


def _scored(score: TokenScore) -> Json:
    return {"token": _name(score.text), "logprob": score.logprob, "bytes": list(score.text)}


def _name(text: bytes) -> str:
    """Return a token's text; bytes that are not UTF-8 on their own are escaped as in OpenAI's API."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def reply(answer: Answer, shape: Shape) -> Response:
    """Return the response to a request for text."""
    return Events(answer, shape) if answer.requested.stream else Whole(answer, shape)


class Whole(Response):
    """A response with the whole answer as one object."""

    def __init__(self, answer: Answer, shape: Shape) -> None:
        self.answer, self.shape, self.background = answer, shape, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate the whole answer, then send it."""
        async with self.answer.attended(receive), aclosing(self.answer.pieces()) as pieces:
            async for _ in pieces:
                pass  # the answer collects the pieces; at the timeout it is what has been generated
        await JSONResponse(self.shape.whole(self.answer), headers=HEADERS)(scope, receive, send)


class Events(Response):
    """A response that streams the answer. An error before the first piece is an error response; after it, an event."""

    def __init__(self, answer: Answer, shape: Shape) -> None:
        self.answer, self.shape, self.background = answer, shape, None
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send each piece when it is generated."""
        try:
            async with self.answer.attended(receive), aclosing(self.answer.pieces()) as pieces:
                async for piece in pieces:
                    await self._begin(send)
                    for event in self.shape.piece(piece, self.answer):
                        await self._send(send, event)
        except ApiError as error:
            if not self.begun:
                raise
            await self._send(send, self.shape.failed(error))
        else:
            await self._begin(send)
            for event in self.shape.last(self.answer):
                await self._send(send, event)
        end = b"" if self.shape.named else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": end})

    async def _begin(self, send: Send) -> None:
        if self.begun:
            return
        self.begun = True
        headers = [(name.encode(), value.encode()) for name, value in _EVENTS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in self.shape.first(self.answer):
            await self._send(send, event)

    async def _send(self, send: Send, event: Event) -> None:
        name = f"event: {event['type']}\n" if self.shape.named else ""
        data = f"{name}data: {json.dumps(event, separators=(',', ':'))}\n\n"
        await send({"type": "http.response.body", "body": data.encode(), "more_body": True})


__all__ = ["Chat", "Completion", "Event", "Events", "Shape", "Whole", "reply"]
