"""MLX, ONNX Runtime and OpenVINO behind the same server, asked by OpenAI's client."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import edgekit
from edgekit import sample
from edgekit_mlx.adapters import fused
from edgekit_mlx.training import Training, finetune

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "serve"))
from serving import send, servers

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "Once upon a time"}]


#: runtime -> format, and the type of what is not quantized.
RUNTIMES = {"mlx": ("mlx", "F32"), "onnxruntime": ("onnx", None), "openvino": ("openvino", None)}


@pytest.fixture(scope="module", params=RUNTIMES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A runtime, and the sample model with a chat template in its format."""
    name, dtype = RUNTIMES[request.param]
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(sample.path(), folder / "hf")
    config = folder / "hf" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return request.param, edgekit.convert(folder / "hf", folder / "tales", format=name, dtype=dtype).path


def test_the_public_client(served: tuple[str, Path], tmp_path: Path):
    name, model = served
    with edgekit.load(model, name) as runtime:
        wanted = runtime.generate("Once upon a time", max_tokens=20)
        vector = runtime.embed("Once upon a time")  # type: ignore[attr-defined]
    options: Any = {"model": "tales", "max_tokens": 20, "temperature": 0}
    with servers(tmp_path) as start:
        server = start("serve", model, "--port", 0, "--runtime", name)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
            said = client.completions.create(prompt="Once upon a time", **options)
            assert (said.choices[0].text, said.choices[0].finish_reason) == (wanted, "length")
            assert said.usage is not None
            assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (10, 20)
            parts = client.chat.completions.create(messages=MESSAGES, stream=True, **options)
            assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted
            again = client.completions.create(prompt="Once", seed=3, **{**options, "temperature": 1}).choices[0].text
            assert (
                client.completions.create(prompt="Once", seed=3, **{**options, "temperature": 1}).choices[0].text
                == again
            )
            made = client.embeddings.create(model="tales", input=["Once upon a time"]).data[0].embedding
            np.testing.assert_allclose(np.array(made, np.float32), vector, atol=1e-6)
            with pytest.raises(openai.BadRequestError, match="do not fit"):
                client.completions.create(prompt="Once " * 600, **options)
        for stream in (True, False):
            connection = server.connection()
            send(
                connection, "/v1/completions", {"prompt": "Once", "max_tokens": 400, "temperature": 0, "stream": stream}
            )
            connection.close()
            begun = time.monotonic()
            assert server.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 1})[0] == 200
            assert time.monotonic() - begun < 5
        assert server.stop() == 0


def test_adapters_of_mlx_by_request(tmp_path: Path):
    """A request that names an adapter gets the text of the model with it; others do not."""
    model = edgekit.convert(sample.path(), tmp_path / "tales", format="mlx", dtype="F32").path
    (tmp_path / "data.jsonl").write_text('{"text": "Once upon a time the dog went up up up up."}\n' * 4)
    finetune(edgekit.open(model), tmp_path / "data.jsonl", tmp_path / "poet", Training(steps=3, batch=1, rate=1e-2))
    wanted = edgekit.load(fused(edgekit.open(model), tmp_path / "poet"), "numpy").generate("Once upon", max_tokens=12)
    asked: Any = {"prompt": "Once upon", "max_tokens": 12, "temperature": 0}
    with servers(tmp_path) as start:
        server = start("serve", model, "--port", 0, "--runtime", "mlx", "--lora", f"poet={tmp_path / 'poet'}")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
            assert [card.id for card in client.models.list()] == ["tales", "poet"]
            plain = client.completions.create(model="tales", **asked).choices[0].text
            assert plain != wanted
            assert client.completions.create(model="poet", **asked).choices[0].text == wanted
            lora = {"lora": [{"id": "poet", "scale": 1}]}
            assert client.completions.create(model="tales", extra_body=lora, **asked).choices[0].text == wanted
            assert client.completions.create(model="tales", **asked).choices[0].text == plain
