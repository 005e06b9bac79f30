"""What LitServe with its OpenAI specification does of what a server has to do: the reasons in docs/explanation/serving.md.

pip install litserve; python tests/bench/litserve_trial.py
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

SERVER = """
import sys, time
import litserve
import edgekit
from edgekit import sample

class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = edgekit.load(sample.path(), "numpy")

    def predict(self, prompt, **context):
        start = time.monotonic()
        for piece in self.model.stream("Once upon a time", max_tokens=300):
            time.sleep(0.01)
            yield piece
        print(f"generated to the end in {time.monotonic() - start:.1f} s", flush=True)

if __name__ == "__main__":
    server = litserve.LitServer(Api(spec=litserve.OpenAISpec()), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
"""
PORT = 8971
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "sample", "messages": [{"role": "user", "content": "Hi"}]}


def ask(path: str, body: Any = None, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """One request."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request("POST" if data else "GET", path, data, {"content-type": "application/json", **(headers or {})})
    return connection.getresponse()


def status(path: str, body: Any = None, **headers: str) -> str:
    """The status of an answer."""
    return f"status {ask(path, body, headers).status}"


def tokens_of_a_short_answer() -> str:
    """Whether max_tokens is counted and the reason to end is told."""
    told = json.loads(ask(CHAT, {**HELLO, "max_tokens": 3}).read())
    return f"finish_reason {told['choices'][0]['finish_reason']!r}, usage {told.get('usage')}"


def hang_up(log: Path) -> str:
    """What the model does when its client is gone after half a second."""
    before = log.read_text().count("to the end")
    response = ask(CHAT, {**HELLO, "stream": True})
    response.read(10)
    time.sleep(0.5)
    response.close()
    time.sleep(8)
    return "it goes on to the end of the text" if log.read_text().count("to the end") > before else "it stops"


def after_sigterm(process: subprocess.Popen[bytes], group: int) -> str:
    """What is left when the server's own process was told to end."""
    process.send_signal(signal.SIGTERM)
    time.sleep(5)
    left = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True, check=False).stdout.split()
    try:
        answers = ask("/health").status
    except OSError:
        answers = 0
    return f"{len(left)} processes are left, /health says {answers or 'nothing'}"


def main() -> None:
    """Start LitServe, ask, and print a table."""
    folder = Path(tempfile.mkdtemp())
    program, log = folder / "server.py", folder / "log"
    program.write_text(SERVER)  # a file: LitServe's workers import it
    with log.open("wb") as stream:
        line = [sys.executable, str(program), str(PORT)]
        process = subprocess.Popen(line, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait()
        print(f"LitServe {metadata.version('litserve')}\n\n| asked | found |\n|---|---|")
        trials: list[tuple[str, Callable[[], str]]] = [
            ("`/v1/completions`", lambda: status("/v1/completions", {"model": "sample", "prompt": "a"})),
            ("`/v1/models`", lambda: status("/v1/models")),
            ("`/metrics`", lambda: status("/metrics")),
            ("temperature -5, top_p 77", lambda: status(CHAT, {**HELLO, "temperature": -5, "top_p": 77})),
            ("a body of 20 MB", lambda: status(CHAT, {**HELLO, "user": "x" * 20_000_000})),
            ("a Host that is not this one", lambda: status("/health", host="evil.example")),
            ("`max_tokens` 3", tokens_of_a_short_answer),
            ("a client that hangs up", lambda: hang_up(log)),
            ("SIGTERM", lambda: after_sigterm(process, process.pid)),
        ]
        for what, trial in trials:
            print(f"| {what} | {trial()} |", flush=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder)


def wait() -> None:
    """Until the server answers."""
    for _ in range(120):
        try:
            if ask("/health").status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("LitServe does not answer")


if __name__ == "__main__":
    main()
