"""Checks of a running `edgekit serve`, by its routes and its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import UsageError
from edgekit_workflow.diagnosing.case import Finding, Trouble
from edgekit_workflow.serving import asked, samples

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

#: Texts, or requests, from which on a share says something; and the shares.
LEAST, CUT_OFF, FAILING = 20, 0.5, 0.05


def server_findings(url: str, key: str | None) -> Iterator[Finding]:
    """Yield the findings of a server; after one that keeps clients out, no further ones.

    Args:
        url: of the server: its address, with or without a path.
        key: an API key.

    Raises:
        UsageError: not an http or https URL.
    """
    parts = url.split("/")
    if parts[0] not in ("http:", "https:") or len(parts) < 3 or not parts[2]:
        raise UsageError(f"url {url!r:.80}; write a server's address, such as http://127.0.0.1:8000")
    base = "/".join(parts[:3])
    health, trouble = _reached(base)
    yield Finding("reachable", trouble)
    if trouble is not None:
        return
    yield Finding("healthy", trouble := _healthy(base, health))
    if trouble is not None:
        return
    status, body = asked(f"{base}/v1/models", key)
    yield Finding("admitted", trouble := _admitted(base, status, body))
    if trouble is not None:
        return
    yield Finding("chats", _chats(body))
    _, page = asked(f"{base}/metrics", key)
    given = samples(page.decode("utf-8", "replace"))
    yield Finding("queue", _queue(given))
    yield Finding("failing", _failing(given))
    yield Finding("cut_off", _cut_off(given))


def _reached(base: str) -> tuple[int, Trouble | None]:
    """Ask for ``/health``: the status, or 0 and the trouble of no answer."""
    try:
        return asked(f"{base}/health", None)[0], None
    except (OSError, ValueError) as error:
        return 0, Trouble(
            f"{base} does not answer ({getattr(error, 'reason', error)})",
            "is the server running, at this port, and does --host let other machines in? Its log says where it listens",
        )


def _healthy(base: str, status: int) -> Trouble | None:
    if status in (200, 421):  # the next check says which Host is not allowed
        return None
    return Trouble(
        f"{base}/health answers {status}: the model no longer computes, or this is another server",
        "start it again; its log names the error",
    )


def _admitted(base: str, status: int, body: bytes) -> Trouble | None:
    if status == 200:
        return None
    cures = {
        401: "set EDGEKIT_API_KEY to a key of the server",
        421: "serve with --allow-host and the name that clients or the proxy use",
        404: "this is no `edgekit serve`, or a proxy takes its paths away",
    }
    return Trouble(f"{base}/v1/models answers {status}: {_message(body)}", cures.get(status, "see the server's log"))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no message"


def _chats(body: bytes) -> Trouble | None:
    try:
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        without = [str(card["id"]) for card in cards if "chat" not in card.get("capabilities", ["chat"])]
    except (ValueError, KeyError, TypeError):
        return None
    if not without:
        return None
    return Trouble(
        f"{', '.join(without)} cannot chat: no chat template",
        "use completions, or serve a model that was converted with its template",
        certain=False,
    )


def _sum(given: Sequence[Sample], name: str, **labels: str) -> float:
    return sum(s.value for s in given if s.name == name and labels.items() <= s.labels.items())


def _queue(given: Sequence[Sample]) -> Trouble | None:
    refused = _sum(given, "edgekit_errors_total", code="queue_full")
    if not refused:
        return None
    return Trouble(
        f"{refused:.0f} requests were turned away because the queue was full",
        "--queue for short peaks; --parallel (llama.cpp) or another server for more at a time",
    )


def _failing(given: Sequence[Sample]) -> Trouble | None:
    requests = _sum(given, "edgekit_requests_total")
    failed = sum(s.value for s in given if s.name == "edgekit_requests_total" and s.labels["status"].startswith("5"))
    if requests < LEAST or failed < FAILING * requests:
        return None
    codes = {s.labels["code"] for s in given if s.name == "edgekit_errors_total"}
    return Trouble(
        f"{failed:.0f} of {requests:.0f} requests failed (codes: {', '.join(sorted(codes))})",
        "the server's log has the place of each",
    )


def _cut_off(given: Sequence[Sample]) -> Trouble | None:
    texts = _sum(given, "edgekit_texts_total")
    cut = _sum(given, "edgekit_texts_total", finish="length")
    if texts < LEAST or cut <= CUT_OFF * texts:
        return None
    return Trouble(
        f"{cut:.0f} of {texts:.0f} texts ended at a limit, not by themselves",
        "more max_tokens where answers are to be long; else the end token or the template is lost: edgekit diagnose "
        "MODEL --against SOURCE",
    )


__all__ = ["CUT_OFF", "FAILING", "LEAST", "server_findings"]
