"""Prometheus metrics in a separate registry; they are served on request and never sent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """The metrics of a server; the values of labels are few and never come from a client."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by status; 499: the client hung up", "route", "status")
        self.errors = self._counter("errors", "Answers that are errors", "code")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.tokens = self._counter("generated_tokens", "Tokens generated")
        self.seconds = self._histogram("request_seconds", "From a request to its whole answer", _SECONDS, "route")
        self.first = self._histogram(
            "first_token_seconds", "From a request to its first text", _SECONDS, "route", "model"
        )
        self.speed = self._histogram(
            "tokens_per_second", "Tokens a second after a text's first piece", _SPEEDS, "model"
        )
        self.queue = self._histogram("queue_seconds", "From a request to its turn on the model", _SECONDS, "model")
        self.watch("resident_memory_bytes", "Memory of the server's process; 0: not known", resident)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"edgekit_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"edgekit_{name}", text, labels, registry=self.registry, buckets=buckets)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge whose value is read from a function."""
        Gauge(f"edgekit_{name}", text, registry=self.registry).set_function(value)

    def waited(self, seconds: float) -> None:
        """Record the seconds that a request was queued."""
        self.queue.labels(self.model).observe(seconds)

    def generated(self, route: str, prompt_tokens: int, tokens: int, times: Sequence[float]) -> None:
        """Record the generated texts of a request.

        Args:
            route: name of the request's route.
            prompt_tokens: number of tokens in the prompts.
            tokens: number of generated tokens.
            times: seconds from the request to the first and to the last piece; empty if there were none.
        """
        self.prompt_tokens.inc(prompt_tokens)
        self.tokens.inc(tokens)
        if times:
            self.first.labels(route, self.model).observe(times[0])
        if tokens > 1 and len(times) > 1 and times[-1] > times[0]:
            self.speed.labels(self.model).observe((tokens - 1) / (times[-1] - times[0]))

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def resident() -> float:
    """Return the resident memory of the process in bytes; its peak, or 0, if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return _peak()
    import resource

    return float(pages * resource.getpagesize())


def _peak() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


__all__ = ["CONTENT_TYPE", "Metrics", "resident"]
