"""A chatty model, an application around it, and servers as processes of their own."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import edgekit
from edgekit import sample
from edgekit.runtime import NumpyRuntime
from edgekit_serve.app import create_app
from edgekit_serve.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; this is a helper beside them
from serving import Server, servers

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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers; see `serving.servers`."""
    with servers(tmp_path) as begin:
        yield begin
