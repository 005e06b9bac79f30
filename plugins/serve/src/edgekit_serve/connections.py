"""Connections with deadlines; at the limit the one that has been idle longest is closed for a new one.

uvicorn has no deadline for the rest of a request, and counts idle connections against its limit; a client that opens
512 idle connections would exclude all others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgekit_serve.wire import ApiError

LOG = logging.getLogger("edgekit_serve")
_FULL = "the server has as many connections as it takes; try again later"


class Connection(H11Protocol):
    """A connection of HTTP/1.1, as uvicorn reads it, with deadlines.

    Attributes:
        header_seconds: for the head of a request, from its first byte or from the connection's beginning.
        body_seconds: for its whole body; the application's shorter limit normally applies first, with a response.
        write_seconds: for a client to receive what was sent.
        since: when the connection began to wait, in the loop's seconds.
    """

    header_seconds: ClassVar[float] = 20.0
    body_seconds: ClassVar[float] = 35.0
    write_seconds: ClassVar[float] = 60.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # uvicorn's limit refuses the newest connection; here the one that has been idle longest is closed.
        self.most, self.limit_concurrency = self.limit_concurrency, None
        self.since = self.loop.time()
        self._part: str | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    @property
    def missing(self) -> str | None:
        """The part of a request that the connection waits for: ``head``, ``body``, or nothing."""
        if self.conn.their_state is h11.IDLE:
            return "head"
        return "body" if self.conn.their_state is h11.SEND_BODY else None

    @property
    def replaceable(self) -> bool:
        """Whether the connection waits for its client, so that closing it loses no answer."""
        return self.missing is not None or self.transport.is_closing()

    # Called by uvicorn.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close an idle connection if necessary, and wait for a request."""
        super().connection_made(transport)
        self._make_room()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read data; the deadline of an incomplete part of a request remains."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request (uvicorn's keep-alive), or for the client to receive the rest of the answer."""
        super().on_response_complete()
        self.since = self.loop.time()
        if self.transport.is_closing():
            self._limit_writing()
        elif self.missing == "head" and not self.conn.trailing_data[0]:
            self._stop_reading()
        else:
            self._watch()

    def pause_writing(self) -> None:
        """The client does not read; start the deadline."""
        super().pause_writing()
        self._limit_writing()

    def resume_writing(self) -> None:
        """The client reads again; stop the deadline."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed HTTP request."""
        self._refuse(ApiError(400, "this is not an HTTP/1.1 request", "invalid_http"))

    # Deadlines.

    def _watch(self) -> None:
        if self.missing == self._part:
            return
        self._stop_reading()
        self._part, self.since = self.missing, self.loop.time()
        if self._part is not None:
            seconds = self.header_seconds if self._part == "head" else self.body_seconds
            self._reading = self.loop.call_later(seconds, self._too_late)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._part = self._reading = None

    def _limit_writing(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self.write_seconds, self.transport.abort)

    def _too_late(self) -> None:
        if self.missing == "body":
            self.transport.abort()
        elif self.conn.trailing_data[0]:
            late = f"the head of the request did not come within {self.header_seconds:g} seconds"
            self._refuse(ApiError(408, late, "timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer, unless an answer has begun, and close."""
        if self.cycle is not None and not self.cycle.response_complete:  # an application that waits for the rest
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error.response()
            headers = [*response.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=response.status_code, headers=headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._limit_writing()

    # The limit.

    def _make_room(self) -> None:
        """Close the connections that have been idle longest, down to the limit."""
        while self.most is not None and len(self.connections) > self.most:
            others = (c for c in self.connections if isinstance(c, Connection) and c is not self and c.replaceable)
            oldest = min(others, key=lambda c: c.since, default=None)
            if oldest is None:
                self.app = _full
                return
            self.connections.discard(oldest)
            oldest.transport.abort()


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the error for a new connection if all are busy."""
    response = ApiError(503, _FULL, "too_many_connections", headers={"retry-after": "1"}).response()
    response.headers["connection"] = "close"
    await response(scope, receive, send)


__all__ = ["Connection"]
