"""Answers taken apart: reasoning, text and calls of tools, as each family writes them, in pieces of any size."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import sample
from edgekit.errors import UsageError
from edgekit.pipeline import open_artifact
from edgekit.runtime import NumpyRuntime, chat
from edgekit.runtime._calls import Tools
from edgekit.runtime._dialects import DIALECTS, HERMES, THOUGHTS, dialect_of, marks_of, thought_of
from edgekit.runtime._parse import parts
from edgekit.tokenizer._vocabulary import TokenType

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 6},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
THINK = THOUGHTS[-1]
NAMED = {dialect.name: dialect for dialect in DIALECTS}
ULM = {"city": "Ulm", "days": 2}
#: Family -> what it writes, and the text and calls that are in it.
WRITTEN = [
    ("hermes", 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm", "days": 2}}\n</tool_call>',
     "Let me see.", [("get_weather", ULM)]),
    ("hermes", '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n<tool_call>\n{"arguments": {"city": "}\\"{"}, '
     '"name": "get_weather"}\n</tool_call>\n', "", [("time", {}), ("get_weather", {"city": '}"{'})]),
    ("llama", '{"name": "get_weather", "parameters": {"city": "Ulm", "days": 2}}', "", [("get_weather", ULM)]),
    ("llama", '<|python_tag|>{"name": "time", "parameters": {}}; {"name": "get_weather", "parameters": {"city": "Ulm", "days": 2}}',
     "", [("time", {}), ("get_weather", ULM)]),
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Ulm", "days": 2}}, {"name": "time", "arguments": {}}]',
     "", [("get_weather", ULM), ("time", {})]),
    ("mistral", 'Well.[TOOL_CALLS]get_weather[ARGS]{"city": "Ulm", "days": 2}[TOOL_CALLS]time[CALL_ID]abc123def[ARGS]{}',
     "Well.", [("get_weather", ULM), ("time", {})]),
    ("gemma", '<|tool_call>call:get_weather{city:<|"|>Ulm<|"|>,days:2}<tool_call|><|tool_call>call:time{}<tool_call|>',
     "", [("get_weather", ULM), ("time", {})]),
    ("functiongemma", "<start_function_call>call:get_weather{city:<escape>Ulm<escape>,days:2}<end_function_call>",
     "", [("get_weather", ULM)]),
    ("lfm2", "<|tool_call_start|>[get_weather(city='Ulm', days=2), time()]<|tool_call_end|>Done.",
     "Done.", [("get_weather", ULM), ("time", {})]),
    ("lfm2", '<|tool_call_start|>[{"name": "time", "arguments": {}}]<|tool_call_end|>', "", [("time", {})]),
    ("granite", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Ulm", "days": 2}}, {"name": "time", "arguments": {}}]',
     "", [("get_weather", ULM), ("time", {})]),
    ("gpt-oss", '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Ulm", "days": 2}',
     "", [("get_weather", ULM)]),
    ("gpt-oss", "<|channel|>commentary<|message|>Looking.<|end|><|start|>assistant to=functions.time<|channel|>commentary json"
     "<|message|>{}<|call|>", "Looking.", [("time", {})]),
    ("gpt-oss", "<|channel|>final<|message|>Hello < all", "Hello < all", []),
]  # fmt: skip
#: What only looks like a call; all of it stays text.
TEXTS = [
    ("hermes", '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call>'),
    ("hermes", "<tool_call>\nwell\n</tool_call> and so on"),
    ("hermes", 'A <tool_call of {"name": "time", "arguments": {}} < and'),
    ("hermes", '<tool_call>{"name": "time", "argu'),
    ("llama", '{"answer": 42, "name": "time"} is JSON'),
    ("llama", 'As JSON: {"name": "time", "parameters": {}}'),
    ("mistral", '[TOOL_CALLS][{"name": "nothing", "arguments": {}}]'),
    ("mistral", "[TOOL_CALLS]nothing[ARGS]{}"),
    ("gemma", "<|tool_call>call:time(1)<tool_call|>"),
    ("gemma", "<|tool_call>call:time{" + "a:{" * 200 + "<tool_call|>"),
    ("lfm2", "<|tool_call_start|>[time(__import__('os').getcwd())]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>[time(1)]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>" + "[" * 500 + "<|tool_call_end|>"),
    ("granite", "<|tool_call|>nothing"),
]


def taken_apart(dialect, pieces, thought=None, opened=False, names=("get_weather", "time")):
    """Text, reasoning, and calls with their arguments, of an answer in pieces."""
    text = reasoning = ""
    calls = []
    for part in parts(iter(pieces), dialect, names, thought, opened):
        assert part.text or part.kind == "arguments"
        text += part.text if part.kind == "text" else ""
        reasoning += part.text if part.kind == "reasoning" else ""
        if part.kind == "call":
            calls.append([part.text, ""])
            assert part.call == len(calls) - 1
        if part.kind == "arguments":
            calls[part.call][1] += part.text
    return text, reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


def cut(data, text):
    """A text in pieces of any size."""
    places = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True) if a < b]


@given(st.data())
@pytest.mark.parametrize(("name", "written", "text", "calls"), WRITTEN, ids=lambda value: str(value)[:30])
def test_what_each_family_writes(name, written, text, calls, data):
    for pieces in ([written], [*written], cut(data, written)):
        assert taken_apart(NAMED[name], pieces) == (text, "", calls)


@given(st.data())
@pytest.mark.parametrize(("name", "written"), TEXTS, ids=lambda value: str(value)[:30])
def test_what_only_looks_like_a_call_is_text(name, written, data):
    for pieces in ([written], [*written], cut(data, written)):
        assert taken_apart(NAMED[name], pieces) == (written, "", [])


@given(st.text("<>[]{}\"':,\\ \n=/|tool_calname", max_size=60), st.sampled_from(DIALECTS))
def test_any_text_is_taken_apart(text, dialect):
    """Nothing is lost where nothing is called, whatever the text; harmony's headers are no text."""
    found, _, calls = taken_apart(dialect, [*text])
    if not calls and dialect.body != "harmony":
        assert found == text or found.strip() == text.strip()


@given(st.data())
@pytest.mark.parametrize("thought", THOUGHTS, ids=lambda thought: thought.end)
def test_reasoning(thought, data):
    call = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    for opened in (True, False):
        written = f"{'' if opened else thought.begin}\nSo < it is.\nYes.\n{thought.end}\n\nIt is noon.{call}"
        for pieces in ([written], [*written], cut(data, written)):
            found = taken_apart(HERMES, pieces, thought, opened)
            assert found == ("It is noon.", "So < it is.\nYes.", [("time", {})])
    assert taken_apart(HERMES, ["It is", " noon."], thought) == ("It is noon.", "", [])
    assert taken_apart(HERMES, ["So it"], thought, opened=True) == ("", "So it", [])


def test_reasoning_of_gpt_oss():
    written = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>"
    assert taken_apart(NAMED["gpt-oss"], [*written]) == ("Hi.", "Hm.", [])


def test_arguments_come_as_they_are_written():
    pieces = ['<tool_call>\n{"name": "get_weather", "argum', 'ents": {"ci', 'ty": "Ul', 'm"}}\n</tool_call>']
    found = [(part.kind, part.text) for part in parts(iter(pieces), HERMES, ("get_weather",), None, False)]
    assert found == [("call", "get_weather"), ("arguments", '{"ci'), ("arguments", 'ty": "Ul'), ("arguments", 'm"}')]


def test_arguments_that_are_cut_off():
    pieces = ['<tool_call>{"name": "get_weather", "arguments": {"city": "U']
    found = list(parts(iter(pieces), HERMES, ("get_weather",), None, False))
    assert [part.kind for part in found] == ["call", "arguments"]
    assert found[1].text == '{"city": "U'
    assert taken_apart(HERMES, ['<tool_call>{"name": "time", "arguments": {}', "}\n</to"]) == ("", "", [("time", {})])


def test_families_are_told_by_their_templates():
    for dialect in DIALECTS:
        assert dialect.source.startswith("https://")
        for text in dialect.told_by:
            assert dialect_of(f"{{% if tools %}} {text} {{% endif %}}") is dialect
    assert dialect_of("{{ messages }}") is HERMES
    assert thought_of("<think></think>").begin == "<think>"
    assert thought_of("plain") is None
    assert {"<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"} <= set(
        marks_of("<|tool_call> <channel|>")
    )


# With a model. The sample's vocabulary has no marks, so they are texts; and with some of its tokens turned into marks.

TEMPLATE = (
    "{% if tools %}{{ tools | length }} tools {{ MARK }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def artifact():
    return open_artifact(sample.path())


def with_template(artifact, template, special=()):
    tokens, types = list(artifact.tokenizer.tokens), list(artifact.tokenizer.types)
    for number, mark in enumerate(special):
        tokens[-1 - number], types[-1 - number] = mark, TokenType.CONTROL
    changed = attrs.evolve(artifact.tokenizer, chat_template=template, tokens=tuple(tokens), types=tuple(types))
    return attrs.evolve(artifact, load_tokenizer=lambda: changed)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_demanded_calls_of_each_family(artifact, dialect):
    """Hot, and of a model that knows no tools: what is demanded comes, and is what the schema says."""
    pytest.importorskip("llguidance")
    template = TEMPLATE.replace("MARK", repr(dialect.told_by[0]))
    names = set()
    for special in ((), dialect.shown):
        with NumpyRuntime.open(with_template(artifact, template, special)) as model:
            for seed in range(3):
                options = {"tools": TOOLS, "temperature": 1.5, "seed": seed, "parallel_tool_calls": False}
                reply = model.reply("Hi", tool_choice="required", **options)
                message = reply.message()
                (call,) = message["tool_calls"]
                assert reply.finish_reason == "tool_calls", message
                names.add(call["function"]["name"])
                assert is_valid(call["function"]), message
                assert message["content"] == ""
                assert len(call["id"]) == 9
            one = {"type": "function", "function": {"name": "get_weather"}}
            reply = model.reply("Hi", tool_choice=one, tools=TOOLS, temperature=1.5, seed=77)
            calls = reply.message()["tool_calls"]
            calls = calls[:-1] if reply.finish_reason == "length" else calls  # there may be many
            assert {call["function"]["name"] for call in calls} == {"get_weather"}
            assert all(map(is_valid, (call["function"] for call in calls)))
    assert names <= {"get_weather", "time"}


def is_valid(function):
    """Whether a call is what WEATHER or TIME says, in plain code."""
    arguments = json.loads(function["arguments"])
    if function["name"] == "time":
        return arguments == {}
    return (
        arguments.keys() <= {"city", "days", "unit"}
        and isinstance(arguments["city"], str)
        and arguments.get("days", 1) in range(1, 10)
        and arguments.get("unit", "C") in ("C", "F")
    )


def test_a_call_that_is_cut_off(artifact):
    pytest.importorskip("llguidance")
    with NumpyRuntime.open(with_template(artifact, TEMPLATE.replace("MARK", "'<tool_call>'"))) as model:
        reply = model.reply("Hi", tools=[WEATHER], tool_choice="required", max_tokens=60, seed=1)
        reply.message()
        assert reply.finish_reason == "length"
        assert reply.calls[0].name == "get_weather"


def test_reasoning_before_what_is_demanded(artifact):
    """A grammar holds the answer, and lets the model think before; a prompt may have begun that."""
    pytest.importorskip("llguidance")
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    for template, special in (
        ("{{ '</think>' if false }}{{ messages[0].content }}<think>\n", ()),
        ("{{ '</think>' if false }}{{ messages[0].content }}", ("<think>", "</think>")),
    ):
        with NumpyRuntime.open(with_template(artifact, template, special)) as model:
            end = [model.encode("</think>")[-1]]
            bias = dict.fromkeys(end, 9.0) if special else {}
            reply = model.reply("Hi", json_schema=schema, temperature=1.0, seed=3, max_tokens=200, logit_bias=bias)
            message = reply.message()
            if reply.finish_reason == "stop":
                assert isinstance(json.loads(message["content"]), list)
            else:
                assert message["content"] == ""
                assert message["reasoning_content"]
            tools = {"tools": [TIME], "tool_choice": "required"}
            reply = model.reply("Hi", temperature=1.0, seed=3, max_tokens=200, **tools)
            assert reply.message()["content"] == ""


def test_messages_of_a_conversation_with_tools(artifact):
    """A template without tools gets them in words; one with them gets them as they are."""
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]  # fmt: skip
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with NumpyRuntime.open(with_template(artifact, plain)) as model:
        said = model.prompt(messages, {"tools": TOOLS})
        assert said.startswith("system: You may call one or more functions.")
        assert json.dumps(WEATHER) in said
        assert 'assistant: <tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n' in said
        assert said.endswith("user: <tool_response>\nrain\n</tool_response>\n")
        system = [{"role": "system", "content": "Be brief."}, *messages]
        assert model.prompt(system, {"tools": TOOLS}).startswith("system: Be brief.\n\nYou may call")
    knowing = "{{ tools[0].function.name }}{% for m in messages %}|{{ m.tool_calls[0].function.arguments.city if m.tool_calls }}{% endfor %}"
    with NumpyRuntime.open(with_template(artifact, knowing)) as model:
        assert model.prompt(messages, {"tools": TOOLS}) == "get_weather||Ulm|"


def test_a_prefilled_answer_goes_on(artifact):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    with NumpyRuntime.open(with_template(artifact, template)) as model:
        assert model.prompt(messages, continue_final=True) == "<user>Hi</><assistant>Once upon"
        assert model.prompt(messages) == "<user>Hi</><assistant>Once upon</><assistant>"
        for wrong, message in (
            ([messages[0]], "the last message is to be continued, and is not of the assistant"),
            ("Hi", "the last message is to be continued, and is not of the assistant"),
        ):
            with pytest.raises(UsageError, match=message):
                model.prompt(wrong, continue_final=True)
    with pytest.raises(UsageError, match="leaves out the last message"):
        chat.render_answer("{{ messages[0].content }}", messages, {}, continue_final=True)


def test_variables_of_templates(artifact):
    template = "{{ enable_thinking }} {{ reasoning_effort }} {{ greeting }}"
    with NumpyRuntime.open(with_template(artifact, template)) as model:
        seen = []
        model.prompt = lambda *args, **options: seen.append(args[1]) or "a"
        for options in ({}, {"reasoning_effort": "none"}, {"reasoning_effort": "high"}):
            model.reply("Hi", max_tokens=1, template_variables={"greeting": 1}, **options).message()
    assert seen == [
        {"greeting": 1},
        {"reasoning_effort": "none", "enable_thinking": False, "greeting": 1},
        {"reasoning_effort": "high", "enable_thinking": True, "greeting": 1},
    ]


MALFORMED = [
    ([{"type": "retrieval"}], None, "tools[0] must be an object with type function"),
    ([{"type": "function", "function": {"name": "a b"}}], None, "tools[0] must be an object with type function"),
    ([{"type": "function", "function": {"name": "a" * 65}}], None, "tools[0] must be an object with type function"),
    ([{"type": "function", "function": {"name": "a", "parameters": "x"}}], None,
     "tools[0].function.parameters must be a JSON schema, an object"),
    ([TIME, TIME], None, "tools has two functions of one name; the names are time, time"),
    ([TIME] * 129, None, "tools has 129 entries; at most 128 are supported"),
    ([TIME], "always", "tool_choice 'always'; choose auto, none, required, or a function of tools"),
    ([TIME], {"type": "function", "function": {"name": "x"}}, "tool_choice {'type': 'function'"),
    (None, "required", "tool_choice demands a call, and there are no tools"),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "choice", "message"), MALFORMED, ids=lambda value: str(value)[:30])
def test_malformed_tools(tools, choice, message):
    with pytest.raises(UsageError) as caught:
        Tools.of(tools, choice)
    assert str(caught.value).startswith(message)
    assert caught.value.public == str(caught.value)


def test_no_tools_where_none_may_be_called(artifact):
    assert Tools.of([TIME], "none") is None
    assert Tools.of([], "auto") is None
    assert Tools.of(None, "none") is None
    pytest.importorskip("llguidance")
    with NumpyRuntime.open(artifact) as model, pytest.raises(UsageError, match="an answer follows one of them"):
        model.reply("Hi", tools=[TIME], tool_choice="required", json_schema={})
