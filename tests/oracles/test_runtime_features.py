"""Scores, penalties, schemas and calls of tools in every runtime: the sampler's are the core's, the logits the runtime's."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient

import edgekit
from edgekit import sample
from edgekit_serve.app import create_app
from edgekit_serve.settings import Settings

pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
PROMPT = "Once upon a time there was a little"
#: Runtime -> its options, and how far its logits of one pass and of step by step may be apart. llama.cpp computes with
#: activations of 8 bits, whose scales depend on what else is in the batch; the others differ in the order of sums.
RUNTIMES = {
    "numpy": ({}, 2e-4),
    "llamacpp": ({"context": 512, "threads": 1, "cache": "F32"}, 2e-2),
    "isolated": ({"context": 512, "threads": 1, "cache": "F32", "isolate": True}, 2e-2),
    "openvino": ({"exact": True}, 2e-3),
    "onnxruntime": ({"exact": True, "threads": 1}, 2e-3),
    "mlx": ({}, 2e-3),
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
PAIR = {"type": "array", "prefixItems": [{"enum": ["cat", "dog"]}, {"type": "integer", "minimum": 0, "maximum": 99}]}
PAIR |= {"items": False, "minItems": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    shutil.copytree(sample.path(), path / "hf")
    config = path / "hf" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module", params=list(RUNTIMES))
def model(request, folder):
    name, (options, _) = request.param, RUNTIMES[request.param]
    runtime = "llamacpp" if name == "isolated" else name
    pytest.importorskip({"llamacpp": "llama_cpp", "mlx": "mlx.core"}.get(runtime, runtime))
    if runtime == "llamacpp" and not (folder / "tales.gguf").exists():
        edgekit.convert(folder / "hf", folder / "tales.gguf")
    if runtime == "openvino":
        edgekit.convert(folder / "hf", folder / "openvino", format="openvino")
    if runtime == "onnxruntime":
        edgekit.convert(folder / "hf", folder / "onnxruntime", format="onnx")
    if runtime == "mlx":
        edgekit.convert(folder / "hf", folder / "mlx", format="mlx", dtype="F32")
    written = {"numpy": "hf", "llamacpp": "tales.gguf"}.get(runtime, runtime)
    with edgekit.load(folder / written, runtime, **options) as loaded:
        loaded.tolerance = RUNTIMES[name][1]
        yield loaded


def log_softmax(row):
    row = row.astype(np.float64) - row.max()
    return row - np.log(np.exp(row).sum())


def test_scores(model):
    ids = model.encode(PROMPT)
    text = model.stream(ids, max_tokens=10, temperature=0.8, seed=2, logprobs=3)
    said = "".join(text)
    assert b"".join(score.text for score in text.scores).decode().strip() == said.strip()
    rows = model.logits(ids + [score.token for score in text.scores])[len(ids) - 1 :]
    for score, row in zip(text.scores, rows, strict=False):
        wanted = log_softmax(row)
        assert score.logprob == pytest.approx(wanted[score.token], abs=model.tolerance)
        assert [top.logprob for top in score.top] == pytest.approx(sorted(wanted)[::-1][:3], abs=model.tolerance)
    prompt = model.scores(ids, 1)
    assert np.isnan(prompt[0].logprob)
    wanted = [log_softmax(row)[token] for row, token in zip(model.logits(ids), ids[1:], strict=False)]
    assert [score.logprob for score in prompt[1:]] == pytest.approx(wanted, abs=model.tolerance)


def test_penalties(model):
    """Greedy, so that each token has the largest of the scores that a plain reference computes from the logits."""
    ids, options = model.encode(PROMPT), {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    text = model.stream(ids, max_tokens=16, logprobs=0, logit_bias={40: 2.0}, **options)
    "".join(text)
    chosen = [score.token for score in text.scores]
    for number, row in enumerate(model.logits(ids + chosen)[len(ids) - 1 : -1]):
        scores = [float(value) + 2.0 * (token == 40) for token, value in enumerate(row)]
        for token in {*ids, *chosen[:number]}:
            scores[token] = scores[token] / 1.5 if scores[token] > 0 else scores[token] * 1.5
        for token in {*chosen[:number]}:
            scores[token] -= 1.0 + 0.5 * chosen[:number].count(token)
        assert scores[chosen[number]] >= max(scores) - 4 * model.tolerance


def test_schemas(model):
    for seed in range(20):
        text = model.stream(PROMPT, json_schema=PAIR, temperature=1.5, seed=seed)
        animal, number = json.loads("".join(text))
        assert (animal in ("cat", "dog"), number in range(100), text.finish_reason) == (True, True, "stop")
    with pytest.raises(edgekit.errors.UsageError, match="Unsatisfiable schema"):
        model.stream(PROMPT, json_schema={"enum": []})


def test_calls_of_tools(model):
    options = {"tools": [WEATHER], "temperature": 1.5, "parallel_tool_calls": False}
    for seed in range(5):
        reply = model.reply("Once", tool_choice="required", seed=seed, **options)
        (call,) = reply.message()["tool_calls"]
        assert reply.finish_reason == "tool_calls"
        assert json.loads(call["function"]["arguments"])["days"] in range(1, 10)
    plain = model.reply("Once upon a time", tools=[WEATHER], max_tokens=8)
    message = plain.message()
    assert (message["role"], plain.finish_reason) == ("assistant", "length")


def test_16_seeds_at_once(model):
    def text(seed):
        return model.generate("Once upon", max_tokens=8, temperature=1.2, min_p=0.05, seed=seed)

    alone = [text(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, range(16))) == alone


def test_behind_the_server(model):
    """Without its lifespan, which would close the model."""
    ask = TestClient(create_app(model, Settings("tales")), base_url="http://127.0.0.1")
    asked = {"messages": [{"role": "user", "content": "Once upon a time"}], "temperature": 0, "max_tokens": 8}
    said = ask.post("/v1/chat/completions", json={**asked, "logprobs": True, "top_logprobs": 1}).json()
    assert said["choices"][0]["message"]["content"] == model.chat("Once upon a time", max_tokens=8)
    assert len(said["choices"][0]["logprobs"]["content"]) == 8
    tokens = ask.post("/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    assert "Once upon a time" in ask.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    said = ask.post("/v1/completions", json={"prompt": tokens, "temperature": 0, "max_tokens": 8}).json()
    assert said["choices"][0]["text"] == model.generate("Once upon a time", max_tokens=8)
    said = ask.post("/v1/embeddings", json={"input": [tokens, "Once upon a time"]}).json()["data"]
    np.testing.assert_allclose(said[0]["embedding"], said[1]["embedding"], atol=1e-5)
    card = ask.get("/v1/models").json()["data"][0]
    assert {"chat", "tools", "structured_output", "embeddings"} <= set(card["capabilities"])
