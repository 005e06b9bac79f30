"""The settings of a server, in one frozen record."""

from __future__ import annotations

import math
import re

import attrs

from edgekit.errors import UsageError

#: Smallest number of characters of a key.
SHORTEST_KEY = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: An origin as browsers send it: in lower case, without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

#: The smallest value of each limit.
_LEAST = {
    "memory": 1,
    "parallel": 1,
    "waiting": 0,
    "max_tokens": 1,
    "max_body": 1,
    "seconds": 0.01,
    "body_seconds": 0.01,
}


@attrs.frozen
class Settings:
    """Limits and names of a server.

    Attributes:
        model: the name under which clients ask for the model.
        keys: API keys; empty for none at all.
        hosts: names by which clients may call the server, besides ``localhost`` and addresses.
        cors: origins (``https://example.org``) whose web pages may call the server from a browser; none by default.
        parallel: texts that are generated at the same time.
        waiting: length of the queue; further requests get 429.
        max_tokens: largest number that a request may set; None for the size of the context.
        max_body: largest size of a request's body in bytes.
        seconds: time limit of a request, including the queue; the text then ends.
        body_seconds: time limit for a client to send its body.
        lenient: whether parameters that are not supported are ignored, not refused.
        confidence: whether the probability of each token is recorded, for the metrics and the log.
        adapters: names of the adapters that requests may ask for; those of the runtime.
        memory: where a server has several models, the most bytes that the files of those loaded have; None for any.
    """

    model: str = "model"
    keys: frozenset[str] = attrs.field(default=frozenset(), repr=False)
    hosts: frozenset[str] = frozenset()
    cors: frozenset[str] = frozenset()
    parallel: int = 1
    waiting: int = 16
    max_tokens: int | None = None
    max_body: int = 4_000_000
    seconds: float = 300.0
    body_seconds: float = 30.0
    lenient: bool = False
    confidence: bool = False
    memory: int | None = None
    adapters: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not _NAME.fullmatch(self.model):
            raise UsageError(f"model name {self.model!r}; choose letters, digits, '.', '_' and '-', at most 128")
        for name in self.adapters:
            if not _NAME.fullmatch(name) or name == self.model:
                raise UsageError(
                    f"adapter name {name!r}; choose letters, digits, '.', '_' and '-', at most 128, and another name "
                    "than the model's"
                )
        for origin in self.cors:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(f"origin {origin!r}; give a scheme and a host, such as https://app.example.org:8443")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise UsageError(f"{name} {value}; choose {least:g} or more")
        if not all(map(_is_key, self.keys)):
            raise UsageError(
                f"an API key has at least {SHORTEST_KEY} ASCII characters without spaces; "
                'python -c "import secrets; print(secrets.token_urlsafe(32))" makes one'
            )


def _is_key(key: str) -> bool:
    return len(key) >= SHORTEST_KEY and key.isascii() and key.isprintable() and " " not in key


__all__ = ["SHORTEST_KEY", "Settings"]
