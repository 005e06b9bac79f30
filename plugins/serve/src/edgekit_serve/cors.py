"""Cross-origin requests: which web pages a browser lets call the server. None, unless their origin is allowed."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import Scope

#: Names of headers, as a browser lists those that a page wants to send.
_NAMES = re.compile(r"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+)*")
#: Seconds that a browser remembers what it was told.
_REMEMBERED = 600


def headers(scope: Scope, origins: frozenset[str]) -> dict[str, str]:
    """What every answer to a request carries."""
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
    """The headers of the answer where a browser asks whether a page may send a request; None where it does not.

    It asks without the page's API key, and gets no more than these headers.
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
