"""The middleware before every route: counts and logs requests, checks their Host and their key."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
import traceback
from typing import Any

import attrs
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgekit_serve import cors
from edgekit_serve.exchange import Exchange
from edgekit_serve.generate import ANSWER, Answer
from edgekit_serve.metrics import Metrics
from edgekit_serve.settings import Settings
from edgekit_serve.traces import Trace
from edgekit_serve.wire import ApiError, ClientGoneError

LOG = logging.getLogger("edgekit_serve")
_LATER = {"retry-after": "5"}
_INTERNAL = "an internal error; the server's log says where"
#: Names of routes in the metrics and the log; others are ``other``, so that clients cannot create labels.
ROUTES = (
    "/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
    "/v1/rerank", "/tokenize", "/detokenize", "/lora-adapters", "/health", "/metrics",
)  # fmt: skip


def route_of(path: str) -> str:
    """Return the name of a path in the metrics and the log."""
    return path if path in ROUTES else "/v1/models/{name}" if path.startswith("/v1/models/") else "other"


@attrs.frozen
class Guard:
    """The outermost application: it checks Host and key before it reads the body."""

    app: ASGIApp
    settings: Settings
    metrics: Metrics
    trace: Trace | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; any exception becomes an error response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, exchange = time.perf_counter(), Exchange(scope, cors.headers(scope, self.settings.cors), receive, send)
        status = None
        try:
            await self._admitted(scope, exchange)
        except ApiError as error:
            await self._answer(error, exchange)
        except ClientGoneError:
            status = 499
        except asyncio.CancelledError:  # the server is shutting down, and the drain time is over
            await self._answer(ApiError(503, "the server ends", "shutting_down", headers=_LATER), exchange)
        except Exception as error:
            place = "".join(traceback.format_tb(error.__traceback__))
            LOG.error("%s\n%s", type(error).__name__, place)  # the message may quote a prompt
            await self._answer(ApiError(500, _INTERNAL, "internal_error"), exchange)
        finally:
            self._count(scope, status or exchange.status, time.perf_counter() - start)

    async def _admitted(self, scope: Scope, exchange: Exchange) -> None:
        """Check the Host and the key of a request."""
        headers = Headers(scope=scope)
        self._check_host(scope, headers.get("host", ""))
        allowed = cors.preflight(scope, self.settings.cors)
        if allowed is not None:
            await exchange.answer(Response(status_code=204, headers=allowed))
            return
        if self.settings.keys and scope["path"] != "/health" and not self._has_key(_key(headers)):
            raise ApiError(401, "no API key, or a wrong one", "invalid_api_key", headers={"www-authenticate": "Bearer"})
        await self.app(scope, exchange.receive, exchange.send)

    async def _answer(self, error: ApiError, exchange: Exchange) -> None:
        self.metrics.errors.labels(error.code).inc()
        await exchange.answer(error.response(anthropic=exchange.scope["path"] == "/v1/messages"))

    def _check_host(self, scope: Scope, host: str) -> None:
        # Load balancers send HTTP/1.0 without a Host; browsers always send one.
        if host == "" and scope["path"] == "/health":
            return
        if not known_host(host, self.settings.hosts):
            raise ApiError(421, "this server does not answer to that Host; allow it with --allow-host", "unknown_host")

    def _has_key(self, given: str) -> bool:
        # Digests have equal length, and all keys are compared in full, so that the time reveals nothing.
        matches = [hmac.compare_digest(_digest(given), _digest(key)) for key in self.settings.keys]
        return any(matches)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope["path"])
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        method = scope["method"] if scope["method"].isalpha() else "?"
        fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 3), **_texts(scope)}
        LOG.info("%s %s %d %.3fs", method, route, status, seconds, extra={"fields": fields})
        if self.trace is not None:
            asked = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            self.trace(Headers(scope=scope), seconds, f"{method} {route}", {**asked, **_generated(scope)})


def _texts(scope: Scope) -> dict[str, Any]:
    """Return the outcomes of the texts of a request, as fields of the log."""
    answer = scope.get(ANSWER)
    if not isinstance(answer, Answer):
        return {}
    return {"model": answer.metrics.model, "texts": [outcome.fields() for outcome in answer.outcomes]}


def _generated(scope: Scope) -> dict[str, Any]:
    """Return what is known of the texts of a request, in the names of OpenTelemetry's conventions for generative AI."""
    answer = scope.get(ANSWER)
    if not isinstance(answer, Answer):
        return {}
    return {
        "gen_ai.request.model": answer.metrics.model,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
        "edgekit.queue_seconds": answer.queue_seconds,
    }


def _key(headers: Headers) -> str:
    """Return a request's key, from ``Authorization: Bearer KEY`` or, as Anthropic's clients send it, ``x-api-key``."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def known_host(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header is an address, ``localhost``, or an allowed name.

    A web page can make a browser call this server by a name that resolves to it (DNS rebinding), but not by an address
    or ``localhost``.
    """
    before, _, port = host.rpartition(":")
    name = before if before and port.isdigit() else host
    if name.lower() in names | {"localhost"}:
        return True
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return ":" not in bare or name.startswith("[")


__all__ = ["ROUTES", "Guard", "known_host", "route_of"]
