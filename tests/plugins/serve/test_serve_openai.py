"""OpenAI's public Python client against the server."""

from __future__ import annotations

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
        client.chat.completions.create(model="chatty", messages=MESSAGES, n=3)
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_value")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="chatty", prompt="Once " * 2000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"at least \d+ tokens of prompt do not fit") as caught:
        client.chat.completions.create(model="chatty", messages=[{"role": "user", "content": "Once " * 700_000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-wrong-wrong-").models.list()
