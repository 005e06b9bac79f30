"""Traces: a span for each request, with numbers and no content."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

import edgekit
from edgekit.errors import MissingPluginError
from edgekit.runtime import NumpyRuntime
from edgekit_serve import command, traces
from edgekit_serve.app import create_app
from edgekit_serve.settings import Settings

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_span_for_each_request(chatty):
    pytest.importorskip("opentelemetry.sdk", reason="the extra: pip install 'edgekit-serve[traces]'")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    model = NumpyRuntime.open(edgekit.open(chatty))
    with TestClient(
        create_app(model, Settings("chatty"), trace=traces.trace_to(provider)), base_url="http://127.0.0.1"
    ) as ask:
        body = {"prompt": "Once upon a secret", "max_tokens": 5}
        assert ask.post("/v1/completions", json=body, headers={"traceparent": PARENT}).status_code == 200
        ask.post("/v1/completions", json={**body, "secret": 1})
        ask.get("/secret")
    first, second, third = kept.get_finished_spans()
    assert first.name == "POST /v1/completions"
    assert first.context.trace_id == int(PARENT[3:35], 16)
    assert first.attributes["gen_ai.request.model"] == "chatty"
    assert first.attributes["gen_ai.usage.output_tokens"] == 5
    assert first.attributes["gen_ai.usage.input_tokens"] > 0
    assert first.end_time > first.start_time
    assert second.attributes["http.response.status_code"] == 400
    assert (third.attributes["http.route"], third.parent) == ("other", None)
    assert "secret" not in str([span.to_json() for span in kept.get_finished_spans()])


class Collector(BaseHTTPRequestHandler):
    """A collector that keeps what is sent to it."""

    def do_POST(self):
        self.server.sent.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_spans_reach_a_collector(chatty, monkeypatch):
    """Over HTTP, in OTLP's protobuf, at the latest when the server ends."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'edgekit-serve[traces]'")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.sent = []
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "tales")
        trace, finish = traces.trace_to_collector()
        model = NumpyRuntime.open(edgekit.open(chatty))
        with TestClient(create_app(model, Settings("chatty"), trace=trace), base_url="http://127.0.0.1") as ask:
            ask.post("/v1/completions", json={"prompt": "Once upon a secret", "max_tokens": 5})
        finish()
        collector.shutdown()
        thread.join()
    ((path, body),) = collector.sent
    assert path == "/v1/traces"
    assert b"secret" not in body
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert "tales" in [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
    (span,) = resource.scope_spans[0].spans
    counted = {each.key: each.value.int_value for each in span.attributes}
    assert (span.name, counted["gen_ai.usage.output_tokens"]) == ("POST /v1/completions", 5)


def test_without_opentelemetry_traces_are_refused(chatty, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    told = CliRunner().invoke(command.command, [str(chatty), "--port", "0", "--traces"]).exception
    assert isinstance(told, MissingPluginError)
    assert str(told) == "traces need OpenTelemetry; pip install 'edgekit-serve[traces]'"
