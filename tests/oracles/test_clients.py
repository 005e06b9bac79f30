"""OpenAI's and Anthropic's clients on a server of every runtime: chats, completions, structured outputs, tools, responses.

What the answers say is the runtime's own text; the model is the sample, so that calls and schemas are demanded.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import openai
import pytest

import edgekit
from edgekit import sample

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "serve"))
from serving import servers

pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
pydantic = pytest.importorskip("pydantic")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content or '' }}{% endfor %}"
PROMPT = "Once upon a time"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
#: Runtime -> the module that it needs, the format and dtype of the model, and options of loading it.
RUNTIMES = {
    "numpy": ("numpy", None, None, {}),
    "llamacpp": ("llama_cpp", "gguf", None, {"context": 512, "threads": 1}),
    "mlx": ("mlx.core", "mlx", "F32", {}),
    "onnxruntime": ("onnxruntime", "onnx", None, {"threads": 1}),
    "onnxruntime-genai": ("onnxruntime_genai", "onnx", None, {"threads": 1}),
    # Not exact, greedy texts come from OpenVINO GenAI and those with scores do not: the two round differently.
    "openvino": ("openvino", "openvino", None, {"threads": 1, "exact": True}),
}
DAYS = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": DAYS}}


class Pet(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    """What an answer has to hold."""

    kind: Literal["cat", "dog"]
    age: Annotated[int, pydantic.Field(ge=0, le=30)]
    tame: bool


@pytest.fixture(scope="module", params=RUNTIMES)
def served(request, tmp_path_factory):
    """The address of a server, what its runtime makes of the prompt, and its vector (None without embeddings)."""
    library, form, dtype, options = RUNTIMES[request.param]
    pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("model")
    model = folder / "tales"
    shutil.copytree(sample.path(), model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    if form is not None:
        model = edgekit.convert(
            model, folder / ("tales.gguf" if form == "gguf" else form), format=form, dtype=dtype
        ).path
    with edgekit.load(model, request.param, **options) as runtime:
        text = runtime.generate(PROMPT, max_tokens=12)
        vector = runtime.embed(PROMPT) if hasattr(runtime, "embed") else None
    given = [f"--option={name}={json.dumps(value)}" for name, value in options.items()]
    with servers(folder) as start:
        server = start("serve", model, "--port", 0, "--runtime", request.param, "--name", "tales", *given)
        yield f"http://127.0.0.1:{server.port}", text, vector


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_texts_and_vectors(client, served):
    _, text, vector = served
    options: Any = {"model": "tales", "temperature": 0, "max_tokens": 12}
    chat = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **options).choices[0]
    assert (chat.message.content, chat.finish_reason, len(chat.logprobs.content)) == (text, "length", 12)
    pieces = client.chat.completions.create(messages=MESSAGES, stream=True, **options)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
    listed = client.completions.create(prompt=[PROMPT, PROMPT], n=2, **options).choices
    assert [choice.text for choice in listed] == [text] * 4
    if vector is not None:
        made = client.embeddings.create(model="tales", input=[PROMPT], dimensions=8).data[0].embedding
        np.testing.assert_allclose(made, vector[:8] / np.linalg.norm(vector[:8]), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="do not fit"):
        client.completions.create(prompt="Once " * 600, **options)


def test_structured_outputs(client):
    options: Any = {"model": "tales", "temperature": 1.0, "seed": 5}
    said = client.chat.completions.parse(messages=MESSAGES, response_format=Pet, **options).choices[0]
    assert (type(said.message.parsed), said.finish_reason) == (Pet, "stop")
    found = client.responses.parse(model="tales", input=PROMPT, text_format=Pet, temperature=1.0).output_parsed
    assert isinstance(found, Pet)


def test_tools_with_streaming(client):
    options: Any = {"model": "tales", "tools": [WEATHER], "temperature": 0}
    asked: Any = {"messages": MESSAGES, "tool_choice": "required", "parallel_tool_calls": False, **options}
    with client.chat.completions.stream(**asked) as stream:
        (done,) = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    (call,) = final.message.tool_calls
    assert (final.finish_reason, call.function.name, call.function.arguments) == (
        "tool_calls", "get_weather", done.arguments)  # fmt: skip
    assert json.loads(done.arguments)["days"] in range(1, 10)
    history = [*MESSAGES, final.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(messages=history, max_tokens=4, **options).choices[0]
    assert answer.message.role == "assistant"


def test_responses(client, served):
    text = served[1]
    options: Any = {"model": "tales", "input": PROMPT, "temperature": 0, "max_output_tokens": 12}
    said = client.responses.create(**options)
    assert (said.output_text, said.status, said.usage.output_tokens) == (text, "incomplete", 12)
    events = list(client.responses.create(stream=True, **options))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    asked: Any = {"model": "tales", "input": "Hi", "tools": [tool], "temperature": 0}
    (call,) = client.responses.create(tool_choice="required", parallel_tool_calls=False, **asked).output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments)["days"] in range(1, 10)


def test_anthropics_client(served):
    anthropic = pytest.importorskip("anthropic")
    address, text, _ = served
    options: Any = {"model": "tales", "max_tokens": 12, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        said = client.messages.create(messages=MESSAGES, **options)
        assert (said.content[0].text, said.stop_reason, said.usage.output_tokens) == (text, "max_tokens", 12)
        with client.messages.stream(messages=MESSAGES, **options) as stream:
            assert "".join(stream.text_stream) == text
        options |= {"max_tokens": 100, "tools": [{"name": "get_weather", "input_schema": DAYS}]}
        choice = {"type": "any", "disable_parallel_tool_use": True}
        called = client.messages.create(messages=MESSAGES, tool_choice=choice, **options)
        (block,) = called.content
        assert (called.stop_reason, block.name) == ("tool_use", "get_weather")
        assert block.input["days"] in range(1, 10)
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
        history = [*MESSAGES, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(messages=history, **{**options, "max_tokens": 3}).role == "assistant"
