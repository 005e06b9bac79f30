"""A chatty model, an application around it, and servers as processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from starlette.testclient import TestClient

import edgekit
from edgekit import sample
from edgekit.runtime import NumpyRuntime
from edgekit_serve.app import create_app
from edgekit_serve.settings import Settings

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model with a chat template that says nothing of its own."""
    path = tmp_path_factory.mktemp("model") / "chatty"
    shutil.copytree(sample.path(), path)
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return path


class Slow(NumpyRuntime):
    """Takes its time for each token."""

    pause = 0.02

    def tokens(self, prompt: Any, **options: Any) -> Iterator[int]:
        for token in super().tokens(prompt, **options):
            time.sleep(self.pause)
            yield token


@pytest.fixture
def client(chatty: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of an application: `client(runtime=Slow, keys=..., parallel=...)`."""
    open_ones = []

    def make(runtime: type[NumpyRuntime] = NumpyRuntime, **limits: Any) -> TestClient:
        app = create_app(runtime.open(edgekit.open(chatty)), Settings("chatty", **limits))
        open_ones.append(TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True).__enter__())
        return open_ones[-1]

    yield make
    for each in open_ones:
        each.__exit__(None, None, None)


@attrs.define(eq=False)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def wait_until_ready(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())
            if found and self._answers(int(found[1])):
                self.port = int(found[1])
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def _answers(self, port: int) -> bool:
        try:
            return self.get("/health", port) == 200
        except OSError:
            return False

    def get(self, path: str, port: int = 0) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        connection = self.connection()
        send(connection, path, body)
        response = connection.getresponse()
        told = response.read()
        connection.close()
        return response.status, json.loads(told)

    def resident(self) -> int:
        """Bytes of memory that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def send(connection: http.client.HTTPConnection, path: str, body: Any) -> None:
    """Begin a request; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"content-type": "application/json"})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers: `start("serve", path, ...)` the command, `start(code=...)` a program."""
    servers = []

    def begin(*arguments: Any, code: str = "", environment: dict[str, str] | None = None) -> Server:
        line = [sys.executable, *(["-c", code] if code else ["-m", "edgekit"]), *map(str, arguments)]
        log = tmp_path / f"server{len(servers)}.log"
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with log.open("wb") as stream:
            process = subprocess.Popen(line, stdout=stream, stderr=stream, env=env, cwd=tmp_path)
        servers.append(Server(process, log))
        servers[-1].wait_until_ready()
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
