"""OpenAI's public Python client against the server."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import numpy as np
import pytest

import edgekit

openai = pytest.importorskip("openai", reason="the public client; pip install openai")
MESSAGES = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture(scope="module")
def wanted(chatty):
    with edgekit.load(chatty, "numpy") as model:
        return model.generate("Once upon a time", max_tokens=12), model.embed("Once upon a time")


@pytest.fixture
def client(start, chatty):
    key = "0123456789abcdef"
    server = start("serve", chatty, "--port", 0, environment={"EDGEKIT_API_KEY": key})
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0) as made:
        yield made


def test_the_public_client(client, wanted):
    text, vector = wanted
    options = {"model": "chatty", "max_tokens": 12, "temperature": 0}
    assert [model.id for model in client.models.list()] == ["chatty"]
    assert client.models.retrieve("chatty").owned_by == "edgekit"

    said = client.completions.create(prompt="Once upon a time", **options)
    assert (said.choices[0].text, said.choices[0].finish_reason) == (text, "length")
    assert said.usage.total_tokens == 22
    parts = client.completions.create(prompt="Once upon a time", stream=True, **options)
    assert "".join(part.choices[0].text for part in parts) == text

    said = client.chat.completions.create(messages=MESSAGES, **options)
    assert (said.choices[0].message.content, said.choices[0].message.role) == (text, "assistant")
    usage = {"include_usage": True}
    parts = list(client.chat.completions.create(messages=MESSAGES, stream=True, stream_options=usage, **options))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == text
    assert parts[-1].usage.completion_tokens == 12
    # This helper of the client takes a text that was cut off for an error; so it ends at a stop text.
    with client.chat.completions.stream(messages=MESSAGES, stop=[text[8:12]], **options) as stream:
        assert stream.get_final_completion().choices[0].message.content == text[: text.index(text[8:12])]

    # The client asks for base64 by itself.
    made = client.embeddings.create(model="chatty", input="Once upon a time")
    np.testing.assert_array_equal(np.array(made.data[0].embedding, np.float32), vector)


def test_histories_as_the_client_hands_them_back(client, wanted):
    """Its own answers as they are, calls of tools and their results, and both names of one limit."""
    said = client.chat.completions.create(model="chatty", messages=MESSAGES, max_tokens=2, max_completion_tokens=2)
    function = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    history = [
        *MESSAGES,
        said.choices[0].message,
        {**said.choices[0].message.model_dump(), "annotations": [], "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "user", "content": "Once upon a time"},
    ]
    for count in (12, 300):
        options = {"max_tokens": count, "max_completion_tokens": count, "temperature": 0}
        answer = client.chat.completions.create(model="chatty", messages=history, **options)
        assert answer.choices[0].message.role == "assistant"
        assert 0 < answer.usage.completion_tokens <= count


def test_its_errors_are_the_clients(client):
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4' is not here; this server has 'chatty'"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="chatty", prompt="a", suffix="b")
    assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_value")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="chatty", prompt="Once " * 2000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"at least \d+ tokens of prompt do not fit") as caught:
        client.chat.completions.create(model="chatty", messages=[{"role": "user", "content": "Once " * 700_000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-wrong-wrong-").models.list()


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


def test_scores_lists_and_vectors(client, chatty, wanted):
    text, vector = wanted
    options = {"model": "chatty", "max_tokens": 12, "temperature": 0}
    said = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, n=2, **options)
    assert [choice.message.content for choice in said.choices] == [text, text]
    assert len(said.choices[1].logprobs.content) == 12
    assert said.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0
    with edgekit.load(chatty, "numpy") as model:
        ids = model.encode("Once upon a time")
    said = client.completions.create(prompt=[ids, ids], logprobs=1, echo=True, **options)
    assert [choice.text for choice in said.choices] == [f"<s>Once upon a time{text}"] * 2, "all that the ids stand for"
    assert said.choices[0].logprobs.token_logprobs[0] is None
    made = client.embeddings.create(model="chatty", input=[ids], dimensions=8)
    np.testing.assert_allclose(made.data[0].embedding, vector[:8] / np.linalg.norm(vector[:8]), rtol=1e-6)


@pytest.fixture
def structured():
    return pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")


@pytest.mark.usefixtures("structured")
def test_structured_outputs_with_pydantic(client):
    pydantic = pytest.importorskip("pydantic")

    class Pet(pydantic.BaseModel):
        kind: Literal["cat", "dog"]
        age: Annotated[int, pydantic.Field(ge=0, le=30)]
        tame: bool

    options = {"model": "chatty", "temperature": 1.0, "seed": 5}
    parsed = client.chat.completions.parse(messages=MESSAGES, response_format=Pet, **options).choices[0].message.parsed
    assert isinstance(parsed, Pet)
    with client.chat.completions.stream(messages=MESSAGES, response_format=Pet, **options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    said = client.responses.parse(model="chatty", input="Once upon a time", text_format=Pet, temperature=1.0)
    assert isinstance(said.output_parsed, Pet)


@pytest.mark.usefixtures("structured")
def test_tools_with_streaming(client):
    options = {"model": "chatty", "tools": [WEATHER], "tool_choice": "required", "temperature": 0}
    said = client.chat.completions.create(messages=MESSAGES, parallel_tool_calls=False, **options)
    (call,) = said.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 9
    with client.chat.completions.stream(messages=MESSAGES, parallel_tool_calls=False, **options) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert done[0].arguments == final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    history = [*MESSAGES, final.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(model="chatty", messages=history, tools=[WEATHER], max_tokens=4)
    assert answer.choices[0].message.role == "assistant"


def test_responses(client, wanted):
    said = client.responses.create(model="chatty", input="Once upon a time", temperature=0, max_output_tokens=12)
    assert said.output_text == wanted[0]
    assert (said.status, said.usage.output_tokens) == ("incomplete", 12)
    kinds = []
    text = ""
    for event in client.responses.create(
        model="chatty", input="Once upon a time", temperature=0, max_output_tokens=12, stream=True
    ):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert (text, kinds[0], kinds[-1]) == (wanted[0], "response.created", "response.incomplete")


@pytest.mark.usefixtures("structured")
def test_responses_with_tools(client):
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    options = {"model": "chatty", "tools": [tool], "temperature": 0}
    with client.responses.stream(input="Hi", tool_choice="required", parallel_tool_calls=False, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    (call,) = final.output
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
    assert (call.type, call.name) == ("function_call", "get_weather")
    items = [
        {"role": "user", "content": "Hi"},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "ok"},
    ]
    again = client.responses.create(input=items, max_output_tokens=4, **options)
    assert again.output[0].type == "message"
