"""OpenTelemetry traces: a span for each request, without content. Off unless asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import MissingPluginError

#: Makes the span of a request that has ended: its headers, its seconds, its name, and its attributes.
Trace = Callable[[Mapping[str, str], float, str, Mapping[str, Any]], None]
_MISSING = "traces need OpenTelemetry; pip install 'edgekit-serve[traces]'"


def trace_to(provider: Any) -> Trace:
    """Return what makes spans with a tracer provider; a span continues the trace that a request's headers name."""
    try:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode
    except ImportError as error:
        raise MissingPluginError(_MISSING) from error
    tracer = provider.get_tracer("edgekit_serve")

    def trace(headers: Mapping[str, str], seconds: float, name: str, attributes: Mapping[str, Any]) -> None:
        end = time.time_ns()
        span = tracer.start_span(
            name,
            context=extract(headers),
            kind=SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=end - int(seconds * 1e9),
        )
        if attributes["http.response.status_code"] >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    return trace


def trace_to_collector() -> tuple[Trace, Callable[[], None]]:
    """Return what sends spans to a collector (OTLP over HTTP), and what sends the last ones.

    The environment says where to and under which name: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, and
    OpenTelemetry's other variables.

    Raises:
        MissingPluginError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingPluginError(_MISSING) from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return trace_to(provider), provider.shutdown


__all__ = ["Trace", "trace_to", "trace_to_collector"]
