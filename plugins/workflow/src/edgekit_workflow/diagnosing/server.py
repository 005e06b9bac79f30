"""Checks of a running `edgekit serve`, by its routes and its metrics."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from edgekit.errors import UsageError
from edgekit_workflow.diagnosing.case import Finding, Trouble

#: Seconds to wait for an answer.
PATIENCE = 10.0
#: Texts, or requests, from which on a share says something; and the shares.
LEAST, CUT_OFF, FAILING = 20, 0.5, 0.05
_LARGEST = 16 << 20


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
    for name, check in (("reachable", _reachable), ("healthy", _healthy), ("admitted", _admitted)):
        trouble = check(base, key)
        yield Finding(name, trouble)
        if trouble is not None:
            return
    yield Finding("chats", _chats(base, key))
    samples = list(_samples(base, key))
    yield Finding("queue", _queue(samples))
    yield Finding("failing", _failing(samples))
    yield Finding("cut_off", _cut_off(samples))


def _asked(url: str, key: str | None) -> tuple[int, bytes]:
    """Status and body of an answer; raises `OSError` if there is none."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read(_LARGEST)
    except urllib.error.HTTPError as error:
        return error.code, error.read(_LARGEST)


def _reachable(base: str, key: str | None) -> Trouble | None:
    try:
        _asked(f"{base}/health", None)
    except (OSError, ValueError) as error:
        return Trouble(
            f"{base} does not answer ({getattr(error, 'reason', error)})",
            "is the server running, at this port, and does --host let other machines in? Its log says where it listens",
        )
    return None


def _healthy(base: str, key: str | None) -> Trouble | None:
    status, _ = _asked(f"{base}/health", None)
    if status in (200, 421):  # the next check says which Host is not allowed
        return None
    return Trouble(
        f"{base}/health answers {status}: the model no longer computes, or this is another server",
        "start it again; its log names the error",
    )


def _admitted(base: str, key: str | None) -> Trouble | None:
    status, body = _asked(f"{base}/v1/models", key)
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


def _chats(base: str, key: str | None) -> Trouble | None:
    _, body = _asked(f"{base}/v1/models", key)
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


def _samples(base: str, key: str | None) -> Iterator[tuple[str, dict[str, str], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    _, body = _asked(f"{base}/metrics", key)
    for family in text_string_to_metric_families(body.decode("utf-8", "replace")):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _sum(samples: list[tuple[str, dict[str, str], float]], name: str, **labels: str) -> float:
    return sum(v for n, given, v in samples if n == name and labels.items() <= given.items())


def _queue(samples: list[tuple[str, dict[str, str], float]]) -> Trouble | None:
    refused = _sum(samples, "edgekit_errors_total", code="queue_full")
    if not refused:
        return None
    return Trouble(
        f"{refused:.0f} requests were turned away because the queue was full",
        "--queue for short peaks; --parallel (llama.cpp) or another server for more at a time",
    )


def _failing(samples: list[tuple[str, dict[str, str], float]]) -> Trouble | None:
    requests = _sum(samples, "edgekit_requests_total")
    failed = sum(v for n, given, v in samples if n == "edgekit_requests_total" and given["status"].startswith("5"))
    if requests < LEAST or failed < FAILING * requests:
        return None
    codes = {given["code"]: v for n, given, v in samples if n == "edgekit_errors_total"}
    return Trouble(
        f"{failed:.0f} of {requests:.0f} requests failed (codes: {', '.join(sorted(codes))})",
        "the server's log has the place of each",
    )


def _cut_off(samples: list[tuple[str, dict[str, str], float]]) -> Trouble | None:
    texts = _sum(samples, "edgekit_texts_total")
    cut = _sum(samples, "edgekit_texts_total", finish="length")
    if texts < LEAST or cut <= CUT_OFF * texts:
        return None
    return Trouble(
        f"{cut:.0f} of {texts:.0f} texts ended at a limit, not by themselves",
        "more max_tokens where answers are to be long; else the end token or the template is lost: edgekit diagnose "
        "MODEL --against SOURCE",
    )


__all__ = ["CUT_OFF", "FAILING", "LEAST", "PATIENCE", "server_findings"]
