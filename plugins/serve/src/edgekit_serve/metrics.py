"""Prometheus metrics in a separate registry; they are served on request and never sent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgekit.runtime import CachingRuntime
from edgekit_serve.engine import Engine
from edgekit_serve.outcomes import Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LENGTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
_SHARES = tuple(step / 20 for step in range(1, 21))
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """The metrics of a server; the values of labels are few and never come from a client."""

    def __init__(self) -> None:
        self.registry, self._engines = CollectorRegistry(), dict[str, Engine]()
        self.registry.register(_Now(self._engines))
        self.requests = self._counter("requests", "Requests by status; 499: the client hung up", "route", "status")
        self.errors = self._counter("errors", "Answers that are errors", "code")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self.tokens = self._counter("generated_tokens", "Tokens generated", "model")
        self.seconds = self._histogram("request_seconds", "From a request to its whole answer", _SECONDS, "route")
        self.first = self._histogram(
            "first_token_seconds", "From a request to its first text", _SECONDS, "route", "model"
        )
        self.speed = self._histogram(
            "tokens_per_second", "Tokens a second after a text's first piece", _SPEEDS, "model"
        )
        self.queue = self._histogram("queue_seconds", "From a request to its turn on the model", _SECONDS, "model")
        self.texts = self._counter("texts", "Complete texts, by the reason why they ended", "model", "finish")
        self.refusals = self._counter("refusals", "Texts that begin with a refusal", "model")
        self.lengths = self._histogram("text_tokens", "Tokens of a complete text", _LENGTHS, "model")
        self.confidence = self._histogram(
            "text_confidence", "Geometric mean of the probabilities of a text's tokens", _SHARES, "model"
        )
        self.watch("resident_memory_bytes", "Memory of the server's process; 0: not known", resident)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"edgekit_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"edgekit_{name}", text, labels, registry=self.registry, buckets=buckets)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge whose value is read from a function."""
        Gauge(f"edgekit_{name}", text, registry=self.registry).set_function(value)

    def of(self, model: str, engine: Engine) -> ModelMetrics:
        """Return the metrics of one model, whose engine is watched until `forget`."""
        self._engines[model] = engine
        return ModelMetrics(self, model)

    def forget(self, model: str) -> None:
        """Stop watching a model's engine."""
        self._engines.pop(model, None)

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)


@attrs.frozen
class ModelMetrics:
    """The metrics of one model of a server."""

    shared: Metrics
    model: str

    def waited(self, seconds: float) -> None:
        """Count the seconds that a request waited for its turn."""
        self.shared.queue.labels(self.model).observe(seconds)

    def read(self, tokens: int) -> None:
        """Count the tokens of prompts that no text follows."""
        self.shared.prompt_tokens.labels(self.model).inc(tokens)

    def generated(self, route: str, prompt_tokens: int, tokens: int, times: Sequence[float]) -> None:
        """Count the texts of a request.

        Args:
            route: name of the route.
            prompt_tokens: number of tokens in the prompts.
            tokens: number of tokens generated so far.
            times: seconds from the request to the first piece, and to the last; empty if there was none.
        """
        shared, model = self.shared, self.model
        self.read(prompt_tokens)
        shared.tokens.labels(model).inc(tokens)
        if times:
            shared.first.labels(route, model).observe(times[0])
        if tokens > 1 and len(times) > 1 and times[-1] > times[0]:
            shared.speed.labels(model).observe((tokens - 1) / (times[-1] - times[0]))

    def ended(self, outcomes: Sequence[Outcome]) -> None:
        """Count complete texts."""
        shared, model = self.shared, self.model
        for outcome in outcomes:
            shared.texts.labels(model, outcome.finish).inc()
            shared.refusals.labels(model).inc(outcome.refused)
            shared.lengths.labels(model).observe(outcome.tokens)
            if outcome.confidence is not None:
                shared.confidence.labels(model).observe(outcome.confidence)


@attrs.frozen(eq=False)
class _Now(Collector):
    """What the engines of the loaded models do now, and how their runtimes used what they had computed before."""

    engines: dict[str, Engine]

    def collect(self) -> Iterator[Metric]:
        """Return the values at this moment."""
        running = GaugeMetricFamily("edgekit_running", "Requests that the model works on", labels=["model"])
        waiting = GaugeMetricFamily("edgekit_waiting", "Requests in the queue", labels=["model"])
        tokens = CounterMetricFamily(
            "edgekit_cache_tokens",
            "Tokens of prompts, by whether they were there from earlier ones",
            labels=["model", "cache"],
        )
        for model, engine in list(self.engines.items()):
            running.add_metric([model], engine.running)
            waiting.add_metric([model], engine.waiting)
            if isinstance(engine.runtime, CachingRuntime):
                use = engine.runtime.cache_use()
                tokens.add_metric([model, "hit"], use.reused)
                tokens.add_metric([model, "miss"], use.computed)
        yield from (running, waiting, tokens)


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


__all__ = ["CONTENT_TYPE", "Metrics", "ModelMetrics", "resident"]
