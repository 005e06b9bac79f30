"""LangChain's and LlamaIndex' OpenAI classes on the server: a tool's round trip each.

The sample model makes no call by itself, so the call is demanded. It is served under the name of one of OpenAI's models,
since LlamaIndex refuses names that it does not know.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import sample

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "serve"))
from serving import servers

pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
TEMPLATE = "{% for m in messages %}{{ m.content or '' }}{% endfor %}"
NAME = "gpt-4o-mini"
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


@pytest.fixture(scope="module", params=["numpy", "llamacpp"])
def address(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    model, options = folder / "model", []
    shutil.copytree(sample.path(), model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    if request.param == "llamacpp":
        pytest.importorskip("llama_cpp")
        model = edgekit.convert(model, folder / "model.gguf").path
        options = ["--option", "context=512", "--option", "threads=1"]
    with servers(folder) as start:
        server = start("serve", model, "--port", 0, "--runtime", request.param, "--name", NAME, *options)
        yield f"http://127.0.0.1:{server.port}/v1"


def test_langchain(address):
    classes = pytest.importorskip("langchain_openai")
    messages = pytest.importorskip("langchain_core.messages")
    model = classes.ChatOpenAI(model=NAME, base_url=address, api_key="none", temperature=1, seed=1, max_tokens=100)
    question = messages.HumanMessage("Hi")
    answer = model.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False).invoke([question])
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["days"] in range(1, 10)
    result = messages.ToolMessage("sunny, 21 degrees", tool_call_id=call["id"])
    history = [question, answer, result]
    # Asked twice: llama.cpp keeps the prompt's keys, and rounds its last token differently when it computes that alone.
    last = [model.bind_tools([WEATHER]).invoke(history) for _ in range(2)][1]
    assert last.content
    assert last.usage_metadata["output_tokens"] <= 100
    pieces = [piece.content for piece in model.bind_tools([WEATHER]).stream(history)]
    assert "".join(pieces) == last.content


def test_llama_index(address):
    openai = pytest.importorskip("llama_index.llms.openai")
    llms = pytest.importorskip("llama_index.core.llms")
    tools = pytest.importorskip("llama_index.core.tools")

    def get_weather(days: int) -> str:
        """Returns the weather of the next days."""
        return f"sunny for {days} days"

    tool = tools.FunctionTool.from_defaults(get_weather)
    model = openai.OpenAI(model=NAME, api_base=address, api_key="none", temperature=0, max_tokens=60, max_retries=0)
    asked = llms.ChatMessage(role="user", content="Hi")
    told = model.chat_with_tools([tool], chat_history=[asked], tool_required=True, allow_parallel_tool_calls=False)
    (call,) = model.get_tool_calls_from_response(told)
    assert call.tool_name == "get_weather"
    assert isinstance(call.tool_kwargs["days"], int)
    said = tool(**call.tool_kwargs).content
    result = llms.ChatMessage(role="tool", content=said, additional_kwargs={"tool_call_id": call.tool_id})
    last = model.chat([asked, told.message, result])
    assert last.message.content
