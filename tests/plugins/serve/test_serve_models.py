"""Several models in one server: which one answers, what is loaded, and what leaves."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

import edgekit
from edgekit.errors import MemoryShortageError, UsageError
from edgekit.runtime import NumpyRuntime
from edgekit_serve import fields
from edgekit_serve.app import create_app
from edgekit_serve.command import command
from edgekit_serve.metrics import Metrics
from edgekit_serve.models import Model, Models
from edgekit_serve.routes import Routes
from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError

ASKED = {"prompt": "Once upon a time", "max_tokens": 2, "temperature": 0}


class Loads:
    """What was loaded and closed, in order."""

    def __init__(self, chatty):
        self.artifact, self.events, self.fail = edgekit.open(chatty), [], {}

    def model(self, name, nbytes=100):
        return Model(name, nbytes, lambda: self.load(name))

    def load(self, name):
        errors = self.fail.get(name)
        if errors:
            raise errors.pop()
        self.events.append(f"+{name}")
        runtime, events = NumpyRuntime.open(self.artifact), self.events
        close = runtime.close

        def closed():
            events.append(f"-{name}")
            close()

        runtime.close = closed
        return runtime


@pytest.fixture
def loads(chatty):
    return Loads(chatty)


@pytest.fixture
def server(loads):
    """A client of a server with the models a, b and c."""
    open_ones = []

    def make(memory=None, **limits):
        models = [loads.model(name) for name in "abc"]
        app = create_app(models[0].load(), Settings("a", memory=memory, **limits), models=models)
        open_ones.append(TestClient(app, base_url="http://127.0.0.1").__enter__())
        return open_ones[-1]

    yield make
    for each in open_ones:
        each.__exit__(None, None, None)


def ask(client, model, status=200, **more):
    told = client.post("/v1/completions", json={**ASKED, **more, **({"model": model} if model else {})})
    assert told.status_code == status, told.text
    return told.json()


def test_a_model_is_loaded_at_its_first_request(server, loads):
    client = server()
    assert loads.events == ["+a"]
    assert ask(client, "b")["model"] == "b"
    assert ask(client, None)["model"] == "a", "the first, if none is named"
    ask(client, "b")
    assert loads.events == ["+a", "+b"]
    told = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["loaded"]) for card in told] == [("a", True), ("b", True), ("c", False)]
    assert client.get("/v1/models/b").json()["context_length"] > 0
    assert client.get("/v1/models/d").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}


def test_the_least_recently_used_makes_room(server, loads):
    client = server(memory=250)
    for name in ("b", "a", "c", "b"):
        ask(client, name)
    assert loads.events == ["+a", "+b", "-b", "+c", "-a", "+b"]
    client.__exit__(None, None, None)
    assert sorted(loads.events[6:]) == ["-b", "-c"]


def test_a_model_in_use_stays(loads):
    """A model that does not fit beside it is refused until it is free."""
    models = [loads.model(name) for name in "ab"]
    limits, metrics = Settings("a", memory=100), Metrics()
    served = Models(models, limits, lambda name, runtime: Routes(runtime, limits, lambda: None, metrics), metrics)

    async def both():
        async with served.loaded("a"):
            with pytest.raises(ApiError) as refused:
                async with served.loaded("b"):
                    pass
        async with served.loaded("b"):
            pass
        return refused.value

    error = asyncio.run(both())
    assert (error.status, error.code, error.headers["retry-after"]) == (503, "model_does_not_fit", "5")
    assert error.message.startswith("the model 'b' is not loaded and does not fit in memory beside those in use")
    assert loads.events == ["+a", "-a", "+b"]
    served.close()


def test_many_ask_for_one_that_is_not_loaded(server, loads):
    client = server(parallel=4)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: ask(client, "b"), range(4)))
    assert {each["model"] for each in told} == {"b"}
    assert loads.events == ["+a", "+b"]


def test_where_memory_runs_out_another_leaves(server, loads):
    client = server()
    loads.fail["b"] = [MemoryShortageError("short")]
    ask(client, "b")
    assert loads.events == ["+a", "-a", "+b"]
    loads.fail["c"] = [MemoryShortageError("short"), MemoryShortageError("short")]
    told = ask(client, "c", 503)["error"]
    assert (told["code"], "/" in told["message"]) == ("model_does_not_fit", False)
    assert ask(client, "c")["model"] == "c", "the next request tries again"


def test_a_model_that_cannot_be_loaded(server, loads, chatty):
    client = server()
    loads.fail["b"] = [UsageError(f"{chatty}: broken")]
    told = ask(client, "b", 503)["error"]
    assert told["code"] == "model_not_loaded"
    assert told["message"] == "the model 'b' cannot be loaded; the server's log says why"
    assert ask(client, "a")["model"] == "a"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({**ASKED, "model": "d"}, 404, "model_not_found"),
        ({**ASKED, "model": 3}, 400, "invalid_value"),
        ({**ASKED, "model": "b", "magic": 1}, 400, "unknown_parameter"),
    ],
)
def test_requests_that_are_refused(server, body, status, code):
    told = server().post("/v1/completions", json=body)
    assert (told.status_code, told.json()["error"]["code"]) == (status, code)
    if status == 404:
        assert told.json()["error"]["message"] == "the model 'd' is not here; this server has 'a', 'b', 'c'"


def test_every_route_goes_to_the_model(server):
    client = server()
    chat = {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2}
    for path, body in {
        "/v1/chat/completions": chat,
        "/v1/messages": chat,
        "/v1/responses": {"input": "Once", "max_output_tokens": 2},
        "/tokenize": {"prompt": "Once"},
        "/v1/embeddings": {"input": "Once"},
    }.items():
        assert client.post(path, json={"model": "b", **body}).status_code == 200, path


def test_a_body_is_parsed_once(server, monkeypatch):
    parsed = []
    parse = fields.parse
    monkeypatch.setattr(fields, "parse", lambda body: parsed.append(body) or parse(body))
    client = server()
    ask(client, "b", user="x" * 100_000)
    ask(client, "b")
    assert len(parsed) == 2


def test_metrics_by_model(server):
    client = server()
    for name in ("a", "b", "b"):
        ask(client, name)
    told = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    assert lines['edgekit_generated_tokens_total{model="b"}'] == "4.0"
    assert lines['edgekit_queue_seconds_count{model="a"}'] == "1.0"
    assert lines['edgekit_running{model="b"}'] == "0.0"
    assert 'edgekit_running{model="c"}' not in lines


def test_names_and_sizes_are_checked(loads):
    with pytest.raises(UsageError, match=r"two models are named 'a'; give each a name of its own"):
        create_app(loads.load("a"), Settings("a"), models=[loads.model("a"), loads.model("a")])
    with pytest.raises(UsageError, match=r"b has 200 bytes, and --memory allows 100; allow more, or leave it out"):
        create_app(loads.load("a"), Settings("a", memory=100), models=[loads.model("a"), loads.model("b", 200)])


def test_the_command_counts_names(chatty):
    told = CliRunner().invoke(command, [str(chatty), str(chatty), "--name", "one"])
    assert "1 names for 2 models; give --name once for each, or not at all" in str(told.exception)


def test_the_command_serves_several(start, chatty, tmp_path):
    (tmp_path / "other").symlink_to(chatty)
    server = start(
        "serve", chatty, tmp_path / "other", "--port", 0, "--runtime", "numpy", "--name", "one", "--name", "two"
    )
    for name in ("two", "one"):
        status, told = server.post("/v1/completions", {**ASKED, "model": name})
        assert (status, told["model"]) == (200, name)
    log = server.log.read_text()
    assert "serving one, two on http://127.0.0.1" in log
    assert "loading two" in log
    assert "Once upon" not in log
    assert server.stop() == 0
