"""llama.cpp's runtime behind the server, asked by OpenAI's client: the runtime's own text, and an end where it dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import edgekit
from edgekit import sample

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "serve"))
from serving import Server, send, servers

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
OPTIONS = ("context=256", "threads=1", 'cache="F32"')
both_ways = pytest.mark.parametrize("isolate", [False, True], ids=["here", "child"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model with a chat template, as Q8_0."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(sample.path(), folder / "hf")
    config = folder / "hf" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return edgekit.quantize(folder / "hf", "Q8_0", to=folder / "tales.gguf").path


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Iterator[Callable[[bool], Server]]:
    """Starts the server with llama.cpp in its own process, or in a child."""
    with servers(tmp_path) as begin:
        yield lambda isolate: begin(
            "serve", model, "--port", 0, "--runtime", "llamacpp", *(f"--option={option}" for option in OPTIONS),
            f"--option=isolate={str(isolate).lower()}",
        )  # fmt: skip


@both_ways
def test_the_public_client(start: Callable[[bool], Server], model: Path, isolate: bool):
    with edgekit.load(model, "llamacpp", context=256, threads=1, cache="F32") as runtime:
        wanted = runtime.generate("Once upon a time", max_tokens=20)
        vector = runtime.embed("Once upon a time")
    server = start(isolate)
    assert "(runtime llamacpp, device " in server.log.read_text()  # and how many layers are on it
    options: Any = {"model": "tales", "max_tokens": 20, "temperature": 0}
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        said = client.completions.create(prompt="Once upon a time", **options)
        assert (said.choices[0].text, said.choices[0].finish_reason) == (wanted, "length")
        assert said.usage is not None
        assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (10, 20)
        parts = client.chat.completions.create(messages=MESSAGES, stream=True, **options)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted
        stop = wanted[10:14]
        told = client.chat.completions.create(messages=MESSAGES, stop=stop, **options).choices[0]
        assert (told.message.content, told.finish_reason) == (wanted[: wanted.index(stop)], "stop")
        made = client.embeddings.create(model="tales", input=["Once upon a time"]).data[0].embedding
        np.testing.assert_allclose(np.array(made, np.float32), vector, atol=1e-6)
        with pytest.raises(openai.BadRequestError, match="do not fit the model's context of 256"):
            client.completions.create(prompt="Once " * 300, **options)
        with pytest.raises(openai.BadRequestError, match=r"max_tokens is -1"):
            client.completions.create(prompt="Once", **{**options, "max_tokens": -1})
        assert client.completions.create(prompt="Once upon a time", **options).choices[0].text == wanted, "it goes on"
    assert server.stop() == 0


@both_ways
def test_a_client_that_hangs_up(start: Callable[[bool], Server], isolate: bool):
    server = start(isolate)
    for stream in (True, False):
        connection = server.connection()
        send(connection, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 240, "stream": stream})
        connection.close()
        begun = time.monotonic()
        assert server.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 1})[0] == 200
        assert time.monotonic() - begun < 5  # its own work included, on a busy machine
    assert server.stop() == 0


def test_where_llama_cpp_dies_the_server_says_so_and_ends(start: Callable[[bool], Server]):
    server = start(True)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list a process's children")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGABRT)
    status, told = server.post("/v1/completions", {"prompt": "Once upon a time"})
    assert (status, told["error"]["code"]) == (500, "model_error")
    assert server.process.wait(timeout=30) == 5
    log = server.log.read_text()
    assert "the model no longer computes after InvalidFileError; the server ends" in log
    assert "the runtime 'llamacpp' no longer computes; start the server again" in log
    assert "Once upon" not in log


def test_parallel_texts_share_batches(tmp_path: Path, model: Path):
    with servers(tmp_path) as begin:
        options = ["--option", "context=256", "--option", "threads=1"]
        server = begin("serve", model, "--port", 0, "--runtime", "llamacpp", "--parallel", 4, *options)
        assert ", sequences 4, " in server.log.read_text()
        asked = [{"prompt": "Once upon a time", "max_tokens": 8, "seed": seed} for seed in range(8)]
        alone = [server.post("/v1/completions", body)[1]["choices"][0]["text"] for body in asked]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda body: server.post("/v1/completions", body), asked))
        assert [status for status, _ in answers] == [200] * 8
        assert [told["choices"][0]["text"] for _, told in answers] == alone
        assert len(set(alone)) > 1
        assert server.stop() == 0
