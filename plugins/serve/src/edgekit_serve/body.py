"""Reads a request's body within limits of size and time, and detects a client that disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError, ClientGoneError


async def read(request: Request, settings: Settings) -> bytes:
    """Return the body of a JSON request.

    Raises:
        ApiError: 415 if the content type is not JSON (browsers send other types across sites without a preflight), 413
            if the body is too large, 408 if it arrives too slowly.
        ClientGoneError: the client disconnected.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the content type must be application/json", "unsupported_media_type")
    try:
        async with asyncio.timeout(settings.body_seconds):
            return await _read(request, settings.max_body)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {settings.body_seconds:g} seconds", "timeout") from None
    except ClientDisconnect:
        raise ClientGoneError from None


async def _read(request: Request, most: int) -> bytes:
    length, body = request.headers.get("content-length", ""), bytearray()
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise _too_large(most)
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", "body_too_large")


@asynccontextmanager
async def present(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects.

    Raises:
        ClientGoneError: the client disconnected.
    """
    task, gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


__all__ = ["present", "read"]
