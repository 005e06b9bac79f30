"""Anthropic's public Python client against the server."""

from __future__ import annotations

import pytest

import edgekit

anthropic = pytest.importorskip("anthropic", reason="the public client; pip install anthropic")
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
TOOL = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["days"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def wanted(chatty):
    with edgekit.load(chatty, "numpy") as model:
        return model.generate("Once upon a time", max_tokens=12)


@pytest.fixture
def client(start, chatty):
    key = "0123456789abcdef"
    server = start("serve", chatty, "--port", 0, environment={"EDGEKIT_API_KEY": key})
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key=key, max_retries=0) as made:
        yield made


def test_texts(client, wanted):
    options = {"model": "chatty", "max_tokens": 12, "extra_body": {"temperature": 0}, "messages": MESSAGES}
    said = client.messages.create(**options)
    assert (said.content[0].text, said.stop_reason) == (wanted, "max_tokens")
    assert (said.usage.input_tokens, said.usage.output_tokens) == (10, 12)
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == wanted
        final = stream.get_final_message()
    assert (final.content[0].text, final.usage.output_tokens) == (wanted, 12)
    stopped = client.messages.create(**{**options, "stop_sequences": [wanted[4:8]]})
    assert (stopped.content[0].text, stopped.stop_reason) == (wanted[: wanted.index(wanted[4:8])], "end_turn")


def test_tools(client):
    pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
    choice = {"type": "any", "disable_parallel_tool_use": True}
    options = {"model": "chatty", "max_tokens": 100, "extra_body": {"temperature": 0}, "tools": [TOOL]}
    said = client.messages.create(messages=MESSAGES, tool_choice=choice, **options)
    (block,) = said.content
    assert (said.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "get_weather")
    assert 1 <= block.input["days"] <= 9
    with client.messages.stream(messages=MESSAGES, tool_choice=choice, **options) as stream:
        assert stream.get_final_message().content[0].input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    history = [*MESSAGES, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**options, "messages": history, "max_tokens": 3}).role == "assistant"


def test_errors_are_the_clients(client):
    with pytest.raises(anthropic.NotFoundError, match="the model 'claude' is not here"):
        client.messages.create(model="claude", max_tokens=3, messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError, match="do not fit the model's context"):
        client.messages.create(model="chatty", max_tokens=3, messages=[{"role": "user", "content": "Once " * 2000}])
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong-wrong-wrong-").messages.create(model="a", max_tokens=1, messages=MESSAGES)
