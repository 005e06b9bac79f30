"""One request and its answer, as the guard observes them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import attrs
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

#: Seconds for which an unneeded body is read and discarded, so that the client can read the answer: closing a
#: connection with unread bytes discards the answer.
PATIENCE = 1.0


@attrs.define(eq=False)
class Exchange:
    """A request and its answer.

    Attributes:
        scope: the request's ASGI scope.
        headers: the headers of every answer.
        status: HTTP status of the answer; 0 until it has begun.
        unread: whether a part of the request's body has not been read.
    """

    scope: Scope
    headers: Mapping[str, str]
    _receive: Receive
    _send: Send
    status: int = attrs.field(default=0, init=False)
    unread: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        given = Headers(scope=self.scope)
        self.unread = given.get("content-length", "0") != "0" or "transfer-encoding" in given

    async def receive(self) -> Message:
        """Receive the next ASGI message of the request."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send an ASGI message of the answer, with the common headers on the first."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await self._send(message)

    async def answer(self, response: Response) -> None:
        """Send a response unless one has begun; if the request's body is unread, close the connection after it."""
        if self.status:
            return
        if not self.unread:
            await response(self.scope, self.receive, self.send)
            return
        response.headers["connection"] = "close"
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self.send(start)
        await self._send({"type": "http.response.body", "body": response.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.unread and (await self.receive())["type"] != "http.disconnect":
                    pass
        await self._send({"type": "http.response.body", "body": b""})


__all__ = ["PATIENCE", "Exchange"]
