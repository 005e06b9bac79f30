"""A server as a process of its own, for tests; those of real runtimes use it, too."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs


@attrs.define(eq=False)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def wait_until_ready(self) -> None:
        for _ in range(2400):  # two minutes, on a busy machine
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


@contextmanager
def servers(folder: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers: `start("serve", path, ...)` the command, `start(path, code=...)` a program. They end with it."""
    begun: list[Server] = []

    def start(*arguments: Any, code: str = "", environment: dict[str, str] | None = None) -> Server:
        line = [sys.executable, *(["-c", code] if code else ["-m", "edgekit"]), *map(str, arguments)]
        log = folder / f"server{len(begun)}.log"
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with log.open("wb") as stream:
            process = subprocess.Popen(line, stdout=stream, stderr=stream, env=env, cwd=folder)
        begun.append(Server(process, log))
        begun[-1].wait_until_ready()
        return begun[-1]

    try:
        yield start
    finally:
        for server in begun:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
