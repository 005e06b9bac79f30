"""Cross-origin requests: web pages may call the server only if their origin is allowed."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import Scope

#: Names of headers, as a browser lists those that a page wants to send.
_NAMES = re.compile(r"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+)*")
#: Seconds for which a browser caches the response of a preflight.
_REMEMBERED = 600


def headers(scope: Scope, origins: frozenset[str]) -> dict[str, str]:
    """Return the headers of every answer to a request."""
    if not origins:
        return {}
    origin = Headers(scope=scope).get("origin", "")
    if origin not in origins:
        return {"vary": "Origin"}
    return {
        "vary": "Origin",
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "Retry-After, WWW-Authenticate",
    }


def preflight(scope: Scope, origins: frozenset[str]) -> dict[str, str] | None:
    """Return the headers of the answer to a preflight request; None for other requests.

    A preflight has no API key; its answer has these headers and no body.
    """
    given = Headers(scope=scope)
    asks = scope["method"] == "OPTIONS" and "access-control-request-method" in given
    if not asks or given.get("origin") not in origins:
        return None
    requested = given.get("access-control-request-headers", "")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": requested if _NAMES.fullmatch(requested) else "authorization, content-type",
        "access-control-max-age": str(_REMEMBERED),
    }


__all__ = ["headers", "preflight"]
