"""The routes, and the application that serves them."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar, cast

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit.runtime import ChatRuntime, EmbeddingRuntime, Generation, Runtime, TokenizingRuntime
from edgekit.typing import F32
from edgekit_serve import body, fields, metrics, replies
from edgekit_serve.engine import Engine, Ticket
from edgekit_serve.generate import Answer, attended
from edgekit_serve.guard import Guard
from edgekit_serve.requests import AnswerOptions, ChatRequest, CompletionRequest, EmbeddingRequest
from edgekit_serve.settings import Settings
from edgekit_serve.wire import HEADERS, ApiError

Asked = TypeVar("Asked", CompletionRequest, ChatRequest, EmbeddingRequest)
#: Bytes of a body whose fields take more than a millisecond to check.
_LARGE = 65_536


def create_app(
    runtime: Runtime, settings: Settings | None = None, *, failed: Callable[[], None] = lambda: None
) -> Starlette:
    """An ASGI application around a runtime, which it closes at shutdown.

    Args:
        runtime: of any plugin; what it can do besides `edgekit.runtime.Runtime` decides which routes work.
        settings: limits and names; None for the defaults.
        failed: called when the runtime no longer computes.
    """
    routes = Routes(runtime, settings or Settings(), failed)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        routes.engine.close()

    app = Starlette(
        routes=routes.table(),
        middleware=[Middleware(cast(Any, Guard), settings=routes.settings, metrics=routes.metrics)],
        exception_handlers={HTTPException: _unknown_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _unknown_route(request: Request, error: Exception) -> Response:
    raise _http(cast(HTTPException, error))


def _http(error: HTTPException) -> ApiError:
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return ApiError(error.status_code, str(error.detail), code, headers=error.headers)


class Routes:
    """What each route does."""

    def __init__(self, runtime: Runtime, settings: Settings, failed: Callable[[], None]) -> None:
        self.runtime, self.settings, self.metrics = runtime, settings, metrics.Metrics()
        self.engine = Engine(runtime, settings.parallel, settings.waiting, failed)
        self.metrics.watch("running", "Requests that the model works on", lambda: self.engine.running)
        self.metrics.watch("waiting", "Requests in the queue", lambda: self.engine.waiting)
        self.started = int(time.time())

    def table(self) -> list[Route]:
        """Paths, methods and what answers them."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name}", self.model),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """Whether the model computes."""
        well = self.engine.well
        return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503, HEADERS)

    async def show_metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(self.metrics.text(), headers={**HEADERS, "content-type": metrics.CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._card()]}, headers=HEADERS)

    async def model(self, request: Request) -> Response:
        """Return the model of that name; 404 for any other."""
        if request.path_params["name"] != self.settings.model:
            raise ApiError(404, f"no such model; this server has {self.settings.model!r}", "model_not_found")
        return JSONResponse(self._card(), headers=HEADERS)

    def _card(self) -> dict[str, Any]:
        return {"id": self.settings.model, "object": "model", "created": self.started, "owned_by": "edgekit"}

    async def complete(self, request: Request) -> Response:
        """Continue a text."""
        asked = await self._given(request, CompletionRequest.of)

        def begin(most: int | None) -> Generation:
            return self.runtime.stream(asked.prompt, max_tokens=most, **asked.requested.options)

        return replies.reply(self._answer(request, asked.requested, begin), replies.Completion(self.settings.model))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        runtime = self.runtime
        if not isinstance(runtime, ChatRuntime):
            raise self._lacks("chat")
        asked = await self._given(request, ChatRequest.of)

        def begin(most: int | None) -> Generation:
            return runtime.chat_stream(asked.messages, max_tokens=most, **asked.requested.options)

        return replies.reply(self._answer(request, asked.requested, begin), replies.Chat(self.settings.model))

    async def embed(self, request: Request) -> Response:
        """Make vectors of texts."""
        runtime = self.runtime
        if not isinstance(runtime, EmbeddingRuntime):
            raise self._lacks("embeddings")
        asked = await self._given(request, EmbeddingRequest.of)
        work = self.engine.run(_vectors(runtime, asked.texts), Ticket())
        try:
            async with attended(request.receive, self.settings.seconds), aclosing(work) as vectors:
                embeddings = [vector async for vector in vectors]
        except TimeoutError:
            late = f"not done within {self.settings.seconds:g} seconds; send fewer texts"
            raise ApiError(504, late, "timeout") from None
        return JSONResponse(self._embeddings(embeddings, asked.base64), headers=HEADERS)

    def _embeddings(self, vectors: list[tuple[F32, int]], base64: bool) -> dict[str, Any]:
        tokens = sum(count for _, count in vectors)
        self.metrics.prompt_tokens.inc(tokens)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector) if base64 else vector.tolist()}
            for index, (vector, _) in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.settings.model, "usage": usage}

    async def _given(self, request: Request, of: Callable[[dict[str, Any], Settings], Asked]) -> Asked:
        """The parsed body. A large one is parsed in a thread, so that other requests are answered meanwhile."""
        data = await body.read(request, self.settings)
        if len(data) < _LARGE:
            return of(fields.parse(data), self.settings)
        return await asyncio.to_thread(lambda: of(fields.parse(data), self.settings))

    def _lacks(self, what: str) -> ApiError:
        return ApiError(400, f"the runtime {self.runtime.name!r} has no {what}", "unsupported_route")

    def _answer(self, request: Request, texts: AnswerOptions, begin: Callable[[int | None], Generation]) -> Answer:
        return Answer(self.engine, self.metrics, request.url.path, texts, begin, self.settings.seconds)


def _vectors(runtime: EmbeddingRuntime, texts: list[str]) -> Generator[tuple[F32, int]]:
    """A vector per text, and the number of tokens; 0 if the runtime does not count them."""
    for text in texts:
        yield runtime.embed(text), len(runtime.encode(text)) if isinstance(runtime, TokenizingRuntime) else 0


def _encoded(vector: F32) -> str:
    """Little-endian float32 in base64, which OpenAI's client asks for."""
    return b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode("ascii")


__all__ = ["Routes", "create_app"]
