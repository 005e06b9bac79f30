"""Connections as strangers hold them: idle, half-sent, dripping, never read; and what is refused on them."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time

import pytest

from edgekit_serve.command import CONNECTIONS

COMPLETIONS = "/v1/completions"
BODY = b'{"prompt": "Once", "max_tokens": 2}'
assert len(BODY) == 35, "as the requests below say"
KEY = "0123456789abcdef"
#: A server with deadlines of half a second.
HASTY = """
import sys
import edgekit
from edgekit.runtime import NumpyRuntime
from edgekit_serve.command import listening, serve
from edgekit_serve.connections import Connection
from edgekit_serve.settings import Settings

Connection.header_seconds = Connection.body_seconds = Connection.write_seconds = 0.5
with listening("127.0.0.1", 0) as door:
    model = NumpyRuntime.open(edgekit.open(sys.argv[1]))
    serve(model, Settings("hasty"), door, 20, f"hasty on http://127.0.0.1:{door.getsockname()[1]}")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, chatty):
    from serving import servers

    with servers(tmp_path_factory.mktemp("server")) as begin:
        yield begin("serve", chatty, "--port", 0)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, chatty):
    from serving import servers

    with servers(tmp_path_factory.mktemp("hasty")) as begin:
        yield begin(chatty, code=HASTY)


def head(path, *headers, method="POST", version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(path=COMPLETIONS, length=35):
    return head(path, "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")


def dial(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def rest(door):
    """All that comes until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := door.recv(65536):
            data += part
    return data


def answer_of(data):
    """Status, headers and JSON of the one answer in the bytes."""
    start, _, body = data.partition(b"\r\n\r\n")
    status, *lines = start.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\nHost: loc", post(length=100) + b'{"prompt": "On'],
    ids=["idle", "half a head", "half a body"],
)
def test_as_many_connections_as_there_may_be_lock_nobody_out(start, chatty, sent):
    server = start("serve", chatty, "--port", 0)
    with contextlib.ExitStack() as stack:
        doors = []
        for _ in range(CONNECTIONS):
            doors.append(stack.enter_context(dial(server)))
            doors[-1].sendall(sent)
        for _ in range(5):
            status, told = server.post(COMPLETIONS, json.loads(BODY))
            assert (status, told["usage"]["completion_tokens"]) == (200, 2)
        doors[0].settimeout(5)
        assert rest(doors[0]) == b"", "the one that waited longest is closed"
        if not sent:
            doors[-1].sendall(post() + BODY)
            assert doors[-1].recv(100).startswith(b"HTTP/1.1 200"), "others go on"
    assert server.get("/health") == 200


def test_a_connection_that_says_nothing_is_closed(hasty):
    with dial(hasty) as door:
        assert rest(door) == b""


@pytest.mark.parametrize("pause", [0, 0.1], ids=["half-sent", "dripping"])
def test_a_head_has_a_deadline(hasty, pause):
    with dial(hasty) as door:
        door.sendall(b"GET /health HTTP/1.1\r\nX-Drip: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(20 if pause else 0):
                door.sendall(b"x")
                time.sleep(pause)
        status, headers, told = answer_of(rest(door))
    assert (status, headers["connection"], told["error"]["code"]) == (408, "close", "timeout")
    assert told["error"]["message"] == "the head of the request did not come within 0.5 seconds"


def test_the_second_head_of_a_connection_has_one_too(hasty):
    with dial(hasty) as door:
        for _ in range(2):
            door.sendall(head("/health", "Host: localhost", method="GET"))
            told = b""
            while not told.endswith(b'{"status":"ok"}'):
                told += door.recv(1000)
            time.sleep(1)  # idle between requests is allowed for longer
        door.sendall(b"GET /hea")
        assert answer_of(rest(door))[0] == 408


def test_a_dripping_body_has_a_deadline(hasty):
    with dial(hasty) as door:
        door.sendall(post(length=1000))
        dripped = 0
        with contextlib.suppress(ConnectionError):
            while dripped < 100:
                door.sendall(b" ")
                dripped += 1
                time.sleep(0.05)
        assert dripped < 100


def test_a_body_that_nobody_reads_has_one(hasty):
    """The answer does not need it; the connection still waits for it."""
    with dial(hasty) as door:
        door.sendall(head("/health", "Host: localhost", "Content-Length: 100", method="GET"))
        assert rest(door).startswith(b"HTTP/1.1 200")


def test_answers_that_nobody_takes(hasty):
    """Some hundred answers fill what the system keeps for the client; then the server waits no longer."""
    request, deadline = head("/metrics", "Host: localhost", method="GET"), time.monotonic() + 60
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        door.connect(("127.0.0.1", hasty.port))
        door.setblocking(False)
        with pytest.raises(ConnectionError):
            ask_until_closed(door, request, deadline)
    assert hasty.get("/health") == 200


def ask_until_closed(door, request, deadline):
    while time.monotonic() < deadline:
        try:
            door.send(request * 100)
        except BlockingIOError:
            time.sleep(0.05)


REFUSED = {
    "host": (421, head(COMPLETIONS, "Host: evil.example", "Content-Type: application/json", "Content-Length: 35")),
    "route": (404, post("/v1/nothing")),
    "method": (405, post("/health")),
    "type": (415, head(COMPLETIONS, "Host: localhost", "Content-Length: 35")),
    "size": (413, post(COMPLETIONS, 5_000_000)),
    "chunks": (415, head(COMPLETIONS, "Host: localhost", "Transfer-Encoding: chunked")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_that_leaves_a_body_unread_closes(server, what):
    status, sent = REFUSED[what]
    with dial(server) as door:
        door.sendall(sent)
        found, headers, told = answer_of(rest(door))
    assert (found, headers["connection"]) == (status, "close")
    assert told["error"].keys() == {"message", "type", "param", "code"}


def test_a_missing_key_closes_too(start, chatty):
    server = start("serve", chatty, "--port", 0, environment={"EDGEKIT_API_KEY": KEY})
    with dial(server) as door:
        door.sendall(post(COMPLETIONS, 5_000_000))
        status, headers, told = answer_of(rest(door))
    assert (status, headers["connection"], told["error"]["code"]) == (401, "close", "invalid_api_key")
    assert headers["www-authenticate"] == "Bearer"
    status, told = server.post(COMPLETIONS, b'{"prompt": "' + b"a" * 3_000_000 + b'"}')
    assert (status, told["error"]["code"]) == (401, "invalid_api_key"), "who sends it all reads the answer as well"


def test_a_refusal_whose_body_was_read_keeps_the_connection(server):
    connection = server.connection()
    for _ in range(3):
        connection.request("POST", COMPLETIONS, b'{"prompt": 7}', {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert (response.status, response.getheader("connection")) == (400, None)
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n\r\n", post(COMPLETIONS, "5x")],
    ids=["TLS", "no Host", "a length that is none"],
)
def test_what_is_no_http(server, sent):
    with dial(server) as door:
        door.sendall(sent + b"\r\n\r\n")
        status, headers, told = answer_of(rest(door))
    assert (status, headers["connection"], told["error"]["code"]) == (400, "close", "invalid_http")


def test_chunks_that_are_none(server):
    chunked = head(COMPLETIONS, "Host: localhost", "Content-Type: application/json", "Transfer-Encoding: chunked")
    with dial(server) as door:
        door.sendall(chunked + b"zz\r\n")
        assert answer_of(rest(door))[0] == 400
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("headers", [(), ("Host:",), ("User-Agent: check",)], ids=str)
def test_load_balancers_need_no_host(server, method, headers):
    with dial(server) as door:
        door.sendall(head("/health", *headers, method=method, version="1.0"))
        told = rest(door)
    assert told.startswith(b"HTTP/1.1 200 ")
    assert told.endswith(b'{"status":"ok"}' if method == "GET" else b"\r\n\r\n")
    with dial(server) as door:
        door.sendall(head("/v1/models", *headers, method=method, version="1.0"))
        assert rest(door).startswith(b"HTTP/1.1 421 ")


def test_curl(server):
    """What a person types, and a large file sent with `Expect: 100-continue` to a route that refuses it."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{server.port}"

    def curl(*arguments, given=b""):
        line = ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}", *arguments]
        told = subprocess.run(line, input=given, capture_output=True, check=True).stdout.rsplit(b"\n", 1)
        return int(told[1]), told[0]

    assert curl("-0", "-H", "Host:", f"{url}/health") == (200, b'{"status":"ok"}')
    status, told = curl(f"{url}{COMPLETIONS}", "--json", BODY.decode())
    assert (status, json.loads(told)["usage"]["completion_tokens"]) == (200, 2)
    status, told = curl(f"{url}{COMPLETIONS}", "--json", '{"prompt": "a", "\\ud800": 1}')
    assert (status, json.loads(told)["error"]["code"]) == (400, "unknown_parameter")
    large = b'{"prompt": "' + b"a" * 4_500_000 + b'"}'
    status, told = curl(f"{url}{COMPLETIONS}", "--json", "@-", given=large)
    assert (status, json.loads(told)["error"]["code"]) == (413, "body_too_large")
    assert curl(f"{url}/v1/models", "--json", "@-", given=large)[0] == 405


# Prompts that are too long by far.


def test_a_prompt_that_is_too_long_costs_little(server):
    """3.9 MB: refused before it is cut, which took 500 MB; what is left is the body and its text, some copies of each."""
    prompt = "Once upon a time there was a girl. " * 111_000
    chat = {"messages": [{"role": "user", "content": prompt}]}
    server.post(COMPLETIONS, {"prompt": prompt})
    before = server.resident()
    for path, body in (
        (COMPLETIONS, {"prompt": prompt}),
        ("/v1/chat/completions", chat),
        ("/v1/embeddings", {"input": prompt}),
    ):
        status, told = server.post(path, body)
        assert (status, told["error"]["code"]) == (400, "context_length_exceeded")
        assert told["error"]["message"].startswith("at least ")
    assert server.resident() - before < 60e6
    assert server.get("/health") == 200
