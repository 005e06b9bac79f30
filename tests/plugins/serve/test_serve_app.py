"""The application: answers, streams, refusals and limits, without a socket."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
import time

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.errors import InvalidFileError, NonFiniteError, UsageError
from edgekit.runtime import Generation, NumpyRuntime, chat
from edgekit_serve.app import create_app
from edgekit_serve.guard import known_host
from edgekit_serve.settings import Settings

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
GREEDY = {"model": "chatty", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
KEY = "k-0123456789abcdef"


def chat_of(**changes):
    message = {"role": "user", "content": "Once upon a time"}
    return {"model": "chatty", "messages": [message], "temperature": 0, "max_tokens": 12, **changes}


def events(response):
    """The data of server-sent events; the last is [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def error_of(response, status, code):
    """The error's message; its shape is OpenAI's."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    return body["error"]["message"]


@pytest.fixture(scope="module")
def wanted(chatty):
    with edgekit.load(chatty, "numpy") as model:
        return model.generate("Once upon a time", max_tokens=12)


def test_a_completion_is_the_runtimes_text(client, wanted):
    said = client().post(COMPLETIONS, json=GREEDY).json()
    assert said.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert (said["object"], said["model"], said["id"][:5]) == ("text_completion", "chatty", "cmpl-")
    assert said["choices"] == [{"index": 0, "text": wanted, "logprobs": None, "finish_reason": "length"}]
    assert said["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}


def test_a_streamed_completion_is_the_same(client, wanted):
    parts = events(client().post(COMPLETIONS, json={**GREEDY, "stream": True}))
    assert "".join(part["choices"][0]["text"] for part in parts) == wanted
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert len({part["id"] for part in parts}) == 1
    assert len(parts) > 5, "it comes in pieces"


def test_chat(client, wanted):
    said = client().post(CHAT, json=chat_of()).json()
    assert (said["object"], said["usage"]["total_tokens"]) == ("chat.completion", 22)
    message = {"role": "assistant", "content": wanted, "refusal": None}
    assert said["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]


def test_streamed_chat_with_usage(client, wanted):
    parts = events(client().post(CHAT, json=chat_of(stream=True, stream_options={"include_usage": True})))
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts[:-1]) == wanted
    assert parts[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_stop_texts_and_the_reason(client, wanted):
    said = client().post(COMPLETIONS, json={**GREEDY, "stop": [wanted[4:8]]}).json()["choices"][0]
    assert (said["text"], said["finish_reason"]) == (wanted[: wanted.index(wanted[4:8])], "stop")


def test_seeds(client):
    ask = client()
    texts = [
        ask.post(COMPLETIONS, json={**GREEDY, "temperature": 2, "seed": seed}).json()["choices"][0]["text"]
        for seed in (1, 1, 2, -1)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    unseeded = {ask.post(COMPLETIONS, json={**GREEDY, "temperature": 2}).text for _ in range(3)}
    assert len(unseeded) > 1


def test_parts_of_a_message_are_put_together(client, wanted):
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    said = client().post(CHAT, json=chat_of(messages=[{"role": "user", "content": parts}])).json()
    assert said["choices"][0]["message"]["content"] == wanted


def test_embeddings(client, chatty):
    ask = client()
    said = ask.post(EMBEDDINGS, json={"model": "chatty", "input": ["Once upon a time", "a"]}).json()
    packed = ask.post(EMBEDDINGS, json={"input": "Once upon a time", "encoding_format": "base64"}).json()
    with edgekit.load(chatty, "numpy") as model:
        wanted = model.embed("Once upon a time")
    assert [entry["index"] for entry in said["data"]] == [0, 1]
    np.testing.assert_array_equal(np.array(said["data"][0]["embedding"], np.float32), wanted)
    assert base64.b64decode(packed["data"][0]["embedding"]) == wanted.astype("<f4").tobytes()
    assert said["usage"] == {"prompt_tokens": 12, "total_tokens": 12}


def test_models_and_health(client):
    ask = client()
    card = ask.get("/v1/models").json()["data"][0]
    assert (card["id"], card["object"]) == ("chatty", "model")
    assert ask.get("/v1/models/chatty").json() == card
    error_of(ask.get("/v1/models/other"), 404, "model_not_found")
    assert ask.get("/health").json() == {"status": "ok"}
    assert ask.head("/health").status_code == 200


def test_a_completion_has_16_tokens_unless_it_says_more(client, chatty):
    ask = client()
    usage = ask.post(COMPLETIONS, json={"prompt": "Once upon a time", "temperature": 0}).json()["usage"]
    assert usage["completion_tokens"] == 16
    with edgekit.load(chatty, "numpy") as model:
        long = next(text for count in range(100, 512) if len(model.encode(text := "a " * count)) > 505)
    fits_not = ask.post(COMPLETIONS, json={"prompt": long, "max_tokens": 16, "temperature": 0})
    assert "shorten the prompt" in error_of(fits_not, 400, "context_length_exceeded")
    usage = ask.post(COMPLETIONS, json={"prompt": long, "temperature": 0}).json()["usage"]
    assert 505 < usage["prompt_tokens"] < usage["total_tokens"] <= 512, "as many as there is room for"


def test_the_most_tokens_of_a_request(client):
    ask = client(max_tokens=5)
    usage = ask.post(CHAT, json={"messages": chat_of()["messages"], "temperature": 0}).json()["usage"]
    assert usage["completion_tokens"] == 5
    told = error_of(ask.post(CHAT, json=chat_of(max_tokens=6)), 400, "invalid_value")
    assert told == "max_tokens is 6; it must be an integer from 1 to 5"


def test_other_routes_and_methods(client):
    ask = client()
    error_of(ask.get("/"), 404, "unknown_route")
    error_of(ask.get("/v1/files/etc/passwd"), 404, "unknown_route")
    error_of(ask.get("/v1/models/"), 404, "unknown_route")
    error_of(ask.get(COMPLETIONS), 405, "method_not_allowed")
    error_of(ask.post("/health"), 405, "method_not_allowed")


# Keys and hosts.


def test_every_route_but_health_wants_the_key(client):
    ask = client(keys=frozenset({KEY, "another-0123456789"}))
    right = {"authorization": f"Bearer {KEY}"}
    for method, path in (
        ("GET", "/v1/models"), ("GET", "/v1/models/x"), ("GET", "/metrics"), ("POST", COMPLETIONS), ("POST", CHAT),
        ("POST", EMBEDDINGS), ("GET", "/nothing"), ("OPTIONS", CHAT),
    ):  # fmt: skip
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
            refused = ask.request(method, path, headers=wrong)
            assert error_of(refused, 401, "invalid_api_key") == "no API key, or a wrong one"
            assert refused.headers["www-authenticate"] == "Bearer"
        assert ask.request(method, path, headers=right).status_code != 401
    assert ask.get("/health").status_code == 200
    assert ask.post(COMPLETIONS, json=GREEDY, headers={"authorization": "bearer another-0123456789"}).status_code == 200


def test_keys_are_compared_in_constant_time(client, monkeypatch):
    """Whole digests of one length, with hmac.compare_digest, each key every time."""
    compared = []

    def compare(a, b):
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("edgekit_serve.guard.hmac.compare_digest", compare)
    ask = client(keys=frozenset({KEY, "another-0123456789"}))
    for given in (KEY, "x", ""):
        ask.get("/v1/models", headers={"authorization": f"Bearer {given}"})
    assert compared == [(32, 32)] * 6


@pytest.mark.parametrize("key", ["short", "with spaces 0123456789", "ünicode-0123456789", ""])
def test_weak_keys_are_refused(key):
    with pytest.raises(UsageError, match="an API key has at least 16 ASCII characters without spaces"):
        Settings(keys=frozenset({key}))


@pytest.mark.parametrize("change", [{"model": "../x"}, {"model": ""}, {"parallel": 0}, {"seconds": float("nan")}])
def test_settings_are_checked(change):
    with pytest.raises(UsageError):
        Settings(**change)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8000", True), ("localhost:1", True), ("LOCALHOST", True), ("[::1]:8000", True),
        ("192.168.1.7:80", True), ("model.example", True), ("model.example:443", True), ("evil.example", False),
        ("localhost.evil.example", False), ("", False), (":80", False), ("127.0.0.1.evil.example", False),
        ("::1", False), ("[::1", False), ("127.0.0.1:80:80", False),
    ],
)  # fmt: skip
def test_hosts(host, known):
    assert known_host(host, frozenset({"model.example"})) is known


def test_a_name_that_leads_here_is_refused(client):
    ask = client()
    told = error_of(ask.get("/health", headers={"host": "evil.example"}), 421, "unknown_host")
    assert told == "this server does not answer to that Host; allow it with --allow-host"


# Bodies.


def test_a_page_cannot_post_without_asking(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused = client().post(COMPLETIONS, content=json.dumps(GREEDY), headers={"content-type": kind})
        error_of(refused, 415, "unsupported_media_type")


def test_large_bodies_are_refused_with_and_without_a_length(client):
    ask = client(max_body=1000)
    said = {"content-type": "application/json"}
    padded = json.dumps({**GREEDY, "user": "x" * 1000}).encode()

    def chunks():
        for start in range(0, len(padded), 100):
            yield padded[start : start + 100]

    assert "larger than 1000 bytes" in error_of(
        ask.post(COMPLETIONS, content=padded, headers=said), 413, "body_too_large"
    )
    error_of(ask.post(COMPLETIONS, content=chunks(), headers=said), 413, "body_too_large")
    assert Settings().max_body == 4_000_000


BAD = {
    "empty": b"", "not JSON": b"{", "not UTF-8": b'{"prompt": "\xff"}', "a list": b"[]", "null": b"null",
    "NaN": b'{"prompt": "a", "temperature": NaN}', "infinite": b'{"prompt": "a", "temperature": 1e999}',
    "minus infinity": b'{"prompt": "a", "top_p": -Infinity}',
    "a huge integer": b'{"prompt": "a", "max_tokens": 1' + b"0" * 500 + b"}",
    "an integer beyond Python's limit": b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
    "nested": b"[" * 100_000 + b"]" * 100_000, "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "half a surrogate pair": b'{"prompt": "\\ud800"}', "a null character in a name": b'{"prompt": "a", "\\u0000": 1}',
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_bodies(client, what):
    ask = client()
    answer = ask.post(COMPLETIONS, content=BAD[what], headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert ask.post(COMPLETIONS, json=GREEDY).status_code == 200, "it goes on"


# The queue, time limits, and what goes wrong inside.


class Slow(NumpyRuntime):
    """Takes its time for each token."""

    pause = 0.05

    def tokens(self, prompt, **options):
        for token in super().tokens(prompt, **options):
            time.sleep(self.pause)
            yield token


def in_threads(count, ask):
    found, threads = [], [threading.Thread(target=lambda: found.append(ask())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_queue_is_bounded(client):
    ask = client(Slow, waiting=1)
    answers = in_threads(5, lambda: ask.post(COMPLETIONS, json=GREEDY))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    busy = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(busy, 429, "queue_full") == "the server is busy; try again later"
    assert busy.headers["retry-after"] == "1"
    assert busy.json()["error"]["type"] == "rate_limit_error"
    assert ask.post(COMPLETIONS, json=GREEDY).status_code == 200, "the queue is empty again"


def test_texts_are_generated_side_by_side(client, wanted):
    ask = client(Slow, parallel=3, waiting=0)
    answers = in_threads(3, lambda: ask.post(COMPLETIONS, json=GREEDY))
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [wanted] * 3


def test_out_of_time_a_text_ends_where_it_is(client, wanted):
    ask = client(Slow, seconds=1.5)
    ask.post(COMPLETIONS, json={**GREEDY, "max_tokens": 1})  # what is loaded once is loaded
    said = ask.post(COMPLETIONS, json={**GREEDY, "max_tokens": 400}).json()
    text = said["choices"][0]["text"]
    assert (said["choices"][0]["finish_reason"], wanted.startswith(text[:5])) == ("length", True)
    assert 0 < said["usage"]["completion_tokens"] < 60
    parts = events(ask.post(COMPLETIONS, json={**GREEDY, "max_tokens": 400, "stream": True}))
    assert parts[-1]["choices"][0]["finish_reason"] == "length"
    assert len(parts) < 60


def test_out_of_time_before_the_first_token(client):
    class Slower(Slow):
        pause = 0.5

    ask = client(Slower, seconds=0.2)
    told = error_of(ask.post(COMPLETIONS, json=GREEDY), 504, "timeout")
    assert told == "no text came within 0.2 seconds; send a shorter prompt"


def test_out_of_time_in_the_queue(client):
    ask = client(Slow, seconds=0.3)
    answers = in_threads(3, lambda: ask.post(COMPLETIONS, json={**GREEDY, "max_tokens": 100}))
    late = [answer for answer in answers if answer.status_code == 503]
    assert late
    assert error_of(late[0], 503, "timeout") == "no turn came in time; try again later"
    assert late[0].headers["retry-after"] == "5"


def raising(error, after=1):
    class Raising(NumpyRuntime):
        def stream(self, prompt, **options):
            text = super().stream(prompt, **options)

            def pieces():
                for _ in range(after):
                    yield next(text)
                raise error

            return Generation(pieces())

    return Raising


def test_errors_of_the_runtime_quote_nothing(client, caplog):
    secret = "the client's secret prompt"
    ask = client(raising(RuntimeError(secret), after=0))
    with caplog.at_level(logging.DEBUG):
        answer = ask.post(COMPLETIONS, json={**GREEDY, "prompt": secret})
    assert error_of(answer, 500, "internal_error") == "an internal error; the server's log says where"
    assert "RuntimeError in the runtime" in caplog.text
    assert "test_serve_app.py" in caplog.text, "the log says where"
    assert "secret" not in caplog.text.replace("secret = ", "")
    error_of(client(raising(NonFiniteError(secret), after=0)).post(COMPLETIONS, json=GREEDY), 500, "model_error")
    error_of(client(raising(MemoryError(), after=0)).post(COMPLETIONS, json=GREEDY), 503, "out_of_resources")


def test_prompts_and_answers_are_not_logged(client, caplog, wanted):
    ask = client()
    with caplog.at_level(logging.DEBUG):
        ask.post(CHAT, json=chat_of())
        ask.post(COMPLETIONS, json={**GREEDY, "max_tokens": -1})
        ask.post(CHAT, json=chat_of(messages=[{"role": "robot", "content": "Once upon a time"}]))
        ask.post(COMPLETIONS + "?prompt=Once", json=GREEDY)
    told = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("httpx"))
    assert "POST /v1/chat/completions 200" in told
    for secret in ("Once", wanted, "prompt="):
        assert secret not in told


def test_what_goes_wrong_in_a_stream_is_an_event(client):
    answer = client(raising(RuntimeError("x"))).post(COMPLETIONS, json={**GREEDY, "stream": True})
    parts = events(answer)
    assert parts[-1]["error"]["code"] == "internal_error"
    assert len(parts) == 2
    early = client(raising(RuntimeError("x"), after=0)).post(COMPLETIONS, json={**GREEDY, "stream": True})
    error_of(early, 500, "internal_error")


def test_a_template_that_fails_is_the_requests_fault(client, chatty):
    class Picky(NumpyRuntime):
        def prompt(self, messages):
            raise InvalidFileError("the model's chat template fails; build it yourself", public="the template fails")

    ask = client(Picky)
    told = error_of(ask.post(CHAT, json=chat_of()), 400, "template_failed")
    assert told == "the template fails"
    assert ask.get("/health").status_code == 200


def test_clients_see_neither_paths_nor_advice_for_programmers(client, chatty, caplog):
    class Plain(NumpyRuntime):
        def prompt(self, messages):
            raise template_of(edgekit.open(sample.path()))

        def stream(self, prompt, **options):
            raise UsageError("/srv/secret: call close() first")

    def template_of(artifact):
        with pytest.raises(UsageError) as caught:
            chat.template_of(artifact)
        assert str(sample.path()) in str(caught.value)
        return caught.value

    ask = client(Plain)
    told = error_of(ask.post(CHAT, json=chat_of()), 400, "invalid_value")
    assert told == "the model has no chat template; send a prompt to be continued instead"
    told = error_of(ask.post(COMPLETIONS, json=GREEDY), 400, "invalid_value")
    assert told == "the model refuses this request; the server's log says where"
    assert "UsageError in the runtime" in caplog.text
    assert "secret:" not in caplog.text.replace('"/srv/secret: call', "")


def test_a_model_without_a_tokenizer(client):
    class Mute(NumpyRuntime):
        def tokenizer(self):
            raise self.lacks_tokenizer()

    told = error_of(client(Mute).post(COMPLETIONS, json=GREEDY), 400, "invalid_value")
    assert told == "the model has no tokenizer, so it cannot read texts"


HALF = "\ud800"
QUOTING = [
    (COMPLETIONS, {HALF: 1}), (COMPLETIONS, {"prompt": HALF}), (COMPLETIONS, {"prompt": "a", "model": HALF}),
    (COMPLETIONS, {"prompt": "a", "n": HALF}), (COMPLETIONS, {"prompt": "a", "logit_bias": {HALF: 1}}),
    (COMPLETIONS, {"prompt": "a", "temperature": HALF}), (COMPLETIONS, {"prompt": "a", "stop": [HALF * 300]}),
    (COMPLETIONS, {"prompt": "a", "stream": True, "stream_options": {HALF: 1}}),
    (CHAT, {"messages": [{"role": HALF, "content": "a"}]}), (CHAT, {"messages": [{"role": "user", "content": HALF}]}),
    (CHAT, {"messages": [{"role": "user", "content": "a", HALF: 1}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": HALF}]}]}),
    (EMBEDDINGS, {"input": HALF}), (EMBEDDINGS, {"input": "a", HALF: 1}),
    (EMBEDDINGS, {"input": "a", "encoding_format": HALF}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), QUOTING, ids=ascii)
def test_half_a_surrogate_pair_anywhere(client, caplog, path, body):
    answer = client().post(path, content=json.dumps(body).encode("ascii"), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404)
    assert answer.json().keys() == {"error"}
    assert "Traceback" not in caplog.text


def test_a_template_that_quotes_the_client(client, chatty):
    class Quoting(NumpyRuntime):
        def prompt(self, messages):
            return chat.render("{{ raise_exception(messages[0].content) }}", messages)

    body = json.dumps(chat_of(messages=[{"role": "user", "content": f"a {HALF}"}])).encode("ascii")
    answer = client(Quoting).post(CHAT, content=body, headers={"content-type": "application/json"})
    told = error_of(answer, 400, "invalid_value")
    assert told == "the model's chat template refuses the messages: a \\ud800"


def test_tools_reach_the_template(client):
    seen = []

    class Watching(NumpyRuntime):
        def prompt(self, messages):
            seen.append(messages)
            return "Once"

    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert client(Watching).post(CHAT, json=chat_of(messages=history)).status_code == 200
    assert seen[0][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [{**call, "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]


# Web pages.

PAGE = "https://app.example.org"
ASKS = {"origin": PAGE, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang"}  # fmt: skip


def allowed(response):
    return {name: value for name, value in response.headers.items() if name.startswith("access-control")}


def test_pages_of_other_origins_get_nothing(client):
    ask = client()
    assert error_of(ask.options(CHAT, headers=ASKS), 405, "method_not_allowed")
    for answer in (ask.options(CHAT, headers=ASKS), ask.get("/v1/models", headers={"origin": PAGE})):
        assert not allowed(answer)
        assert "vary" not in answer.headers


def test_pages_of_an_origin_that_is_allowed(client):
    ask = client(cors=frozenset({PAGE}), keys=frozenset({KEY}))
    before = ask.options(CHAT, headers=ASKS)
    assert (before.status_code, before.content) == (204, b"")
    assert allowed(before) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": ASKS["access-control-request-headers"],
        "access-control-expose-headers": "Retry-After, WWW-Authenticate",
        "access-control-max-age": "600",
    }
    right = {"origin": PAGE, "authorization": f"Bearer {KEY}"}
    for answer in (
        ask.post(CHAT, json=chat_of(), headers=right), ask.post(CHAT, json=chat_of(stream=True), headers=right),
        ask.post(CHAT, json=chat_of(n=2), headers=right), ask.get("/v1/models", headers={"origin": PAGE}),
    ):  # fmt: skip
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "Origin"
    assert error_of(ask.get("/v1/models", headers={"origin": PAGE}), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example.org", "https://app.example.org:8443", "null"]
)
def test_an_origin_is_compared_whole(client, origin):
    ask = client(cors=frozenset({PAGE}))
    refused = ask.options(CHAT, headers={**ASKS, "origin": origin})
    assert refused.status_code == 405
    for answer in (refused, ask.get("/v1/models", headers={"origin": origin})):
        assert not allowed(answer)
        assert answer.headers["vary"] == "Origin"
    odd = ask.options(CHAT, headers={**ASKS, "access-control-request-headers": "x, <script>"})
    assert odd.headers["access-control-allow-headers"] == "authorization, content-type"


def test_a_model_that_died_is_not_well(client):
    class Dying(NumpyRuntime):
        def stream(self, prompt, **options):
            self.close()
            raise InvalidFileError("it died")

    ask = client(Dying)
    error_of(ask.post(COMPLETIONS, json=GREEDY), 500, "model_error")
    assert ask.get("/health").json() == {"status": "failed"}
    assert ask.get("/health").status_code == 503


def test_a_runtime_without_chat_and_embeddings(client, chatty):
    class Plain:
        """Only what every runtime has."""

        name = "plain"

        def __init__(self, model):
            self.logits, self.generate, self.stream = model.logits, model.generate, model.stream
            self.close = model.close

        @classmethod
        def open(cls, artifact):
            return cls(NumpyRuntime.open(artifact))

    ask = client(Plain)
    assert ask.post(COMPLETIONS, json=GREEDY).status_code == 200
    assert error_of(ask.post(CHAT, json=chat_of()), 400, "unsupported_route") == "the runtime 'plain' has no chat"
    error_of(ask.post(EMBEDDINGS, json={"input": "a"}), 400, "unsupported_route")


def test_metrics(client):
    ask = client()
    ask.post(COMPLETIONS, json=GREEDY)
    ask.post(CHAT, json=chat_of(stream=True))
    ask.post(CHAT, json=chat_of(suffix="x"))
    ask.get("/secret-path")
    told = ask.get("/metrics")
    assert told.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = dict(line.rsplit(" ", 1) for line in told.text.splitlines() if not line.startswith("#"))
    assert lines['edgekit_requests_total{route="/v1/completions",status="200"}'] == "1.0"
    assert lines['edgekit_requests_total{route="/v1/chat/completions",status="400"}'] == "1.0"
    assert lines['edgekit_requests_total{route="other",status="404"}'] == "1.0"
    assert lines['edgekit_errors_total{code="unsupported_value"}'] == "1.0"
    assert lines['edgekit_first_token_seconds_count{model="chatty",route="/v1/chat/completions"}'] == "1.0"
    assert lines['edgekit_queue_seconds_count{model="chatty"}'] == "2.0"
    assert lines['edgekit_request_seconds_count{route="/v1/chat/completions"}'] == "2.0"
    assert lines['edgekit_tokens_per_second_count{model="chatty"}'] == "2.0"
    assert lines['edgekit_generated_tokens_total{model="chatty"}'] == "24.0"
    assert lines['edgekit_prompt_tokens_total{model="chatty"}'] == "20.0"
    assert lines['edgekit_running{model="chatty"}'] == lines['edgekit_waiting{model="chatty"}'] == "0.0"
    assert float(lines["edgekit_resident_memory_bytes"]) > 10e6
    assert "secret" not in told.text


def test_a_text_whose_client_does_not_read_ends_in_time(chatty):
    """The time counts while a piece is sent, too; the stream is then ended as any other."""
    sent, never = [], []

    async def send(message):
        sent.append(message)
        if b'"text":' in message.get("body", b"") and not never:
            never.append(message)
            await asyncio.Event().wait()

    async def ask():
        incoming = [{"type": "http.request", "body": json.dumps({**GREEDY, "stream": True}).encode()}]

        async def receive():
            return incoming.pop() if incoming else await asyncio.Event().wait()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers, "query_string": b""}
        app = create_app(edgekit.load(chatty, "numpy"), Settings(model="chatty", seconds=1))
        await app({**scope, "root_path": "", "scheme": "http", "server": ("localhost", 80)}, receive, send)

    asyncio.run(ask())
    last = json.loads(sent[-2]["body"].removeprefix(b"data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert sent[-1]["body"] == b"data: [DONE]\n\n"
    assert len(never) == 1
