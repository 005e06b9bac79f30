"""Texts under a schema with everything in it, and calls of tools as each family writes them, hot, in llama.cpp.

`nox -s structured` makes 500 of each, which takes minutes; without EDGEKIT_TEST_TEXTS there are 25.

The sample model has 512 tokens, so that a text takes milliseconds; those of the numpy runtime are in
`tests/contracts/test_structured_texts.py`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil

import pytest

import edgekit
from edgekit import sample
from edgekit.runtime._dialects import DIALECTS

pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
PROMPT = "Once upon a time"
COUNT = int(os.environ.get("EDGEKIT_TEST_TEXTS", "25"))
#: Objects in objects, lists, enums, numbers with bounds, texts with a length, and what may be left out.
ANIMAL = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", 7, None]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 100},
        "size": {"type": "number", "minimum": 0, "maximum": 2},
        "home": {
            "type": "object",
            "properties": {"town": {"type": "string", "maxLength": 5}, "new": {"type": "boolean"}},
            "required": ["town", "new"],
            "additionalProperties": False,
        },
        "toys": {"type": "array", "items": {"enum": ["ball", "box"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["kind", "legs", "size", "home"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 5},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                    "unit": {"enum": ["C", "F"]},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}}},
]


def is_animal(found):
    """Whether a value is what ANIMAL says, in plain code."""
    home, toys = found["home"], found.get("toys", ["ball"])
    return (
        ANIMAL["properties"].keys() >= found.keys() >= {"kind", "legs", "size", "home"}
        and found["kind"] in ("cat", "dog", 7, None)
        and type(found["legs"]) is int
        and 0 <= found["legs"] <= 100
        and type(found["size"]) in (int, float)
        and 0 <= found["size"] <= 2
        and home.keys() == {"town", "new"}
        and isinstance(home["town"], str)
        and len(home["town"]) <= 5
        and type(home["new"]) is bool
        and len(toys) in (1, 2)
        and {*toys} <= {"ball", "box"}
    )


def is_call(function):
    """Whether a call is what TOOLS say, in plain code."""
    arguments = json.loads(function["arguments"])
    if function["name"] == "time":
        return arguments == {}
    return (
        function["name"] == "get_weather"
        and {"city", "days"} <= arguments.keys() <= {"city", "days", "unit"}
        and isinstance(arguments["city"], str)
        and len(arguments["city"]) <= 5
        and arguments["days"] in range(1, 10)
        and arguments.get("unit", "C") in ("C", "F")
    )


def loaded(folder, template=None):
    shutil.copytree(sample.path(), folder / "hf")
    if template is not None:
        config = folder / "hf" / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    path = edgekit.convert(folder / "hf", folder / "tales.gguf").path
    return edgekit.load(path, "llamacpp", context=512, threads=1)


def test_texts_under_a_schema(tmp_path):
    wrong, texts = [], set()
    with loaded(tmp_path) as model:
        for seed in range(COUNT):
            stream = model.stream(PROMPT, json_schema=ANIMAL, temperature=1.5, seed=seed)
            text = "".join(stream)
            texts.add(text)
            if stream.finish_reason != "stop" or not is_animal(json.loads(text)):
                wrong.append(text)
    assert wrong == []
    assert len(texts) > 0.9 * COUNT


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_calls_of_tools(tmp_path, dialect):
    """The prompt is rendered once; the calls are of one tool or the other."""
    template = f"{{% if tools %}}{{{{ {dialect.told_by[0]!r} }}}}{{% endif %}}{{{{ messages[0].content }}}}"
    wrong, names = [], set()
    with loaded(tmp_path, template) as model:
        rendered = model.prompt("Hi", {"tools": TOOLS})
        model.prompt = functools.partial(lambda text, *_, **__: text, rendered)
        for seed in range(COUNT):
            options = {"tools": TOOLS, "temperature": 1.5, "seed": seed, "parallel_tool_calls": False}
            reply = model.reply("Hi", tool_choice="required", **options)
            calls = reply.message()["tool_calls"]
            if reply.finish_reason != "tool_calls" or len(calls) != 1 or not is_call(calls[0]["function"]):
                wrong.append(calls)
            names.add(calls[0]["function"]["name"])
    assert wrong == []
    assert names == {"get_weather", "time"}
