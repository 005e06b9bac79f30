"""What clients may send: every field's type and range, and no body that does anything but be refused or taken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_serve.fields import MAX_CONTAINERS, parse
from edgekit_serve.requests import IGNORED, NEUTRAL, ChatRequest, CompletionRequest, EmbeddingRequest
from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError

SETTINGS = Settings("chatty")
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}

REFUSED = [
    ({"max_tokens": 0}, "max_tokens is 0; it must be an integer from 1 to 16777216"),
    ({"max_tokens": -1}, "max_tokens is -1; it must be an integer from 1 to 16777216"),
    ({"max_tokens": 10**30}, "max_tokens is a huge integer; it must be an integer from 1 to 16777216"),
    ({"max_tokens": 5.0}, "max_tokens is 5.0; it must be an integer from 1 to 16777216"),
    ({"max_tokens": "5"}, 'max_tokens is "5"; it must be an integer from 1 to 16777216'),
    ({"max_tokens": True}, "max_tokens is true; it must be an integer from 1 to 16777216"),
    ({"max_tokens": []}, "max_tokens is []; it must be an integer from 1 to 16777216"),
    ({"temperature": -0.1}, "temperature is -0.1; it must be a number from 0 to 2"),
    ({"temperature": 2.1}, "temperature is 2.1; it must be a number from 0 to 2"),
    ({"temperature": float("inf")}, "temperature is Infinity; it must be a number from 0 to 2"),
    ({"temperature": False}, "temperature is false; it must be a number from 0 to 2"),
    ({"top_p": 0}, "top_p is 0; it must be a number above 0 to 1"),
    ({"top_p": 1.5}, "top_p is 1.5; it must be a number above 0 to 1"),
    ({"top_k": -2}, "top_k is -2; it must be an integer from -1 to 1048576"),
    ({"seed": 2**63}, "seed is 9223372036854775808; it must be an integer from -9223372036854775807 to 9223372036854775807"),
    ({"stop": [1]}, "stop is [1]; it must be a text or a list of at most 16, each of 1 to 256 characters"),
    ({"stop": ""}, 'stop is ""; it must be a text or a list of at most 16, each of 1 to 256 characters'),
    ({"stop": ["a"] * 17}, 'stop is ["a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a",…; it must be a text or a list of at most 16, each of 1 to 256 characters'),
    ({"stream": 1}, "stream is 1; it must be true or false"),
    ({"stream_options": {}}, "stream_options must be an object, and goes with stream"),
    ({"stream": True, "stream_options": {"x": 1}}, 'unknown parameter "x"'),
    ({"n": 17}, "n is 17; it must be an integer from 1 to 16"),
    ({"n": True}, "n is true; it must be an integer from 1 to 16"),
    ({"n": 2, "best_of": 3}, "best_of is 3; only 2 is supported"),
    ({"logprobs": 1}, "logprobs is 1; it must be true or false"),
    ({"top_logprobs": 3}, "top_logprobs goes with logprobs true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21; it must be an integer from 0 to 20"),
    ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be a number from -2 to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number above 0 to 100"),
    ({"min_p": -1}, "min_p is -1; it must be a number from 0 to 1"),
    ({"logit_bias": {"a": 1}}, "logit_bias must map token ids to numbers from -100 to 100"),
    ({"logit_bias": {"5": 101}}, "logit_bias must map token ids to numbers from -100 to 100"),
    ({"logit_bias": [5]}, "logit_bias is [5]; it must be an object"),
    ({"stop_token_ids": [-1]}, "stop_token_ids is [-1]; it must be a list of at most 64 integers from 0 to 2147483647"),
    ({"tools": {}}, "tools is {}; it must be a list"),
    ({"tool_choice": "required"}, "tool_choice demands a call, and there are no tools"),
    ({"reasoning_effort": "huge"}, 'reasoning_effort is "huge"; it must be one of none, minimal, low, medium, high, xhigh'),
    ({"response_format": {"type": "xml"}}, 'response_format is {"type": "xml"}; its type must be text, json_object or json_schema'),
    ({"response_format": {"type": "json_schema"}},
     "response_format of type json_schema must have a json_schema with a schema, an object"),
    ({"ignore_eos": True}, "ignore_eos is true; only false is supported"),
    ({"frobnicate": 1}, 'unknown parameter "frobnicate"'),
    ({"model": 7}, "model is 7; it must be a text"),
    ({"model": "gpt-4"}, "the model 'gpt-4' is not here; this server has 'chatty'"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens is 3 and max_completion_tokens is 4; they mean the same: give one of them"),
    ({"messages": []}, "messages must be a list of at least one message"),
    ({"messages": "Hi"}, "messages must be a list of at least one message"),
    ({"messages": ["Hi"]}, "messages[0] must be an object with a role and a content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role must be one of system, user, assistant, tool, developer"),
    ({"messages": [{"role": "user"}]}, "messages[0].content must be a text, or a list of parts that are texts"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     "messages[0].content: only parts of type text are supported"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
     "messages[0].tool_calls[0] must be an object with id, type function, and function: its name and arguments"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content must be a text, or a list of parts that are texts"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c1"}]}, 'unknown parameter "tool_call_id"'),
    ({"messages": [{"role": "assistant", "annotations": [{"type": "url_citation"}]}]},
     'annotations is [{"type": "url_citation"}]; only [] is supported'),
    ({"suffix": "x" * 200}, f'suffix is "{"x" * 59}…; only "" is supported'),
    ({"functions": [["x" * 200] * 9]}, f'functions is [["{"x" * 57}…; only [] is supported'),
    ({"presence_penalty": False}, "presence_penalty is false; it must be a number from -2 to 2"),
    ({"max_tokens": 1, "max_completion_tokens": True},
     "max_tokens is 1 and max_completion_tokens is true; they mean the same: give one of them"),
    ({"\ud800": 1}, 'unknown parameter "\\ud800"'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_refused(change, message):
    with pytest.raises(ApiError) as caught:
        ChatRequest.of({**HELLO, **change}, SETTINGS)
    assert caught.value.message == message
    assert caught.value.status == (404 if change == {"model": "gpt-4"} else 400)


@pytest.mark.parametrize("prompt", [None, "", [], [""], ["a", 1], [[1], []], [-1], [True], 7, {"text": "x"}])
def test_prompts_that_are_refused(prompt):
    with pytest.raises(ApiError) as caught:
        CompletionRequest.of({"prompt": prompt}, SETTINGS)
    assert (
        caught.value.message
        == "prompt must be a text, token ids, or a list of at most 64 of either, none of them empty"
    )


def test_prompts_of_every_kind():
    for prompt, prompts in (("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], "a"], [[1], "a"])):
        assert CompletionRequest.of({"prompt": prompt}, SETTINGS).prompts == prompts
    with pytest.raises(ApiError, match="prompt has 65 entries; at most 64 are supported"):
        CompletionRequest.of({"prompt": ["a"] * 65}, SETTINGS)
    with pytest.raises(ApiError, match="logprobs is 21; it must be an integer from 0 to 20"):
        CompletionRequest.of({"prompt": "a", "logprobs": 21}, SETTINGS)


def test_a_lenient_server_ignores_what_it_does_not_support():
    lenient = Settings("chatty", lenient=True)
    given = {**HELLO, "frobnicate": 1, "ignore_eos": True, "suffix": "x", "seed": 1}
    assert ChatRequest.of(given, lenient) == ChatRequest.of({**HELLO, "seed": 1}, SETTINGS)
    with pytest.raises(ApiError, match="max_tokens is 0"):
        ChatRequest.of({**HELLO, "max_tokens": 0}, lenient)


def test_options_that_reach_the_runtime():
    given = {
        "min_p": 0.1, "repeat_penalty": 1.1, "frequency_penalty": -0.5, "logit_bias": {"5": -100}, "top_k": -1,
        "stop_token_ids": [7], "stop": ["x"] * 16, "seed": 3, "response_format": {"type": "json_object"}, "n": 3,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    requested = ChatRequest.of({**HELLO, **given}, SETTINGS).requested
    assert requested.options == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 3, "stop": ("x",) * 16, "min_p": 0.1,
        "repetition_penalty": 1.1, "frequency_penalty": -0.5, "logit_bias": {"5": -100}, "stop_token_ids": [7],
        "json_schema": {"type": "object"}, "logprobs": 2,
    }  # fmt: skip
    assert [requested.of_choice(number)["seed"] for number in range(3)] == [3, 4, 5]


@pytest.mark.parametrize("given", [
    {"input": []}, {"input": ""}, {"input": [""]}, {"input": ["a"] * 257}, {"input": [-1]}, {},
    {"input": "a", "dimensions": 0}, {"input": "a", "encoding_format": "int8"}, {"input": "a", "x": 1},
])  # fmt: skip
def test_embeddings_that_are_refused(given):
    with pytest.raises(ApiError) as caught:
        EmbeddingRequest.of(given, SETTINGS)
    assert caught.value.status == 400


def test_what_changes_nothing_is_taken():
    neutral = {name: meanings[0] for name, meanings in NEUTRAL.items() if meanings}
    found = ChatRequest.of({**HELLO, **neutral, **dict.fromkeys(IGNORED, "x"), "logprobs": False}, SETTINGS)
    given = {
        **HELLO,
        "seed": found.requested.options["seed"],
        "tools": [],
        "tool_choice": "auto",
        "repetition_penalty": 1.0,
    }
    assert found.requested.options == {**ChatRequest.of(given, SETTINGS).requested.options}
    everything_null = dict.fromkeys(
        [*NEUTRAL, *IGNORED, "max_tokens", "stop", "temperature", "seed", "stream", "n", "logit_bias", "tools"]
    )
    assert ChatRequest.of({**HELLO, **everything_null}, SETTINGS).requested.options["temperature"] == 1


@pytest.mark.parametrize("count", [7, 300, 100_000])
def test_two_names_with_one_value(count):
    """Equal, whatever Python makes of them: integers above 256 are two objects."""
    given = json.loads(json.dumps({"max_tokens": count, "max_completion_tokens": count}))
    assert ChatRequest.of({**HELLO, **given}, SETTINGS).requested.max_tokens == count
    assert ChatRequest.of({**HELLO, "presence_penalty": 0.0, "frequency_penalty": 0}, SETTINGS)


def test_a_history_with_tools():
    """As OpenAI's clients hand it back: nulls, empty lists, calls with their arguments as text, and what came of them."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    odd = {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "[1"}}
    unused = {"annotations": [], "refusal": None, "audio": None, "function_call": None}
    messages = [
        {"role": "user", "content": "Weather?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call, odd], **unused},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
        {"role": "assistant", "content": "Rain.", "tool_calls": [], **unused},
    ]
    found = ChatRequest.of({"messages": messages}, SETTINGS).messages
    assert found == [
        {"role": "user", "content": "Weather?", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "weather", "arguments": {"city": "Ulm"}}}, odd],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": "noon", "tool_call_id": "c2"},
        {"role": "assistant", "content": "Rain."},
    ]


def test_the_newer_name_of_max_tokens():
    assert ChatRequest.of({**HELLO, "max_completion_tokens": 7}, SETTINGS).requested.max_tokens == 7


def test_prompts_are_not_shown():
    """So that no traceback or log of these objects holds one."""
    for request in (ChatRequest.of(HELLO, SETTINGS), EmbeddingRequest.of({"input": "Hi"}, SETTINGS)):
        assert "Hi" not in repr(request)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*NEUTRAL, *IGNORED, "prompt", "messages", "input", "max_tokens", "temperature", "top_p", "top_k",
                         "seed", "stop", "stream", "stream_options", "logprobs", "model", "encoding_format"]) | st.text(max_size=5)  # fmt: skip


def test_a_body_of_many_lists_is_refused_unread():
    many = json.dumps({"prompt": "a", "stop": [[]] * (MAX_CONTAINERS - 2)}).encode()
    assert len(parse(many)["stop"]) == MAX_CONTAINERS - 2
    for body in (b"[" + b"[]," * MAX_CONTAINERS + b"[]]", b"[" * (MAX_CONTAINERS + 1), many.replace(b"[]]", b"[],{}]")):
        with pytest.raises(ApiError) as caught:
            parse(body)
        assert (caught.value.status, caught.value.message) == (400, "the body has more than 65,536 objects and lists")


@pytest.mark.parametrize("text", ["[" * 200_000, '\\"[{' * 100_000, '"' * 100_001 + "{" * 100_000], ids=len)
def test_brackets_in_a_text_are_text(text):
    assert parse(json.dumps({"prompt": text}).encode()) == {"prompt": text}


@given(st.sampled_from([ChatRequest, CompletionRequest, EmbeddingRequest]), st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_object_is_taken_or_refused_with_400(kind, fields):
    valid = {"prompt": "a"} if kind is CompletionRequest else {"input": "a"} if kind is EmbeddingRequest else HELLO
    for given_fields in (fields, {**valid, **fields}):
        try:
            kind.of(given_fields, SETTINGS)
        except ApiError as error:
            assert error.status in (400, 404)
            json.dumps(error.body()).encode("ascii")


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_object_or_refused(body):
    try:
        assert isinstance(parse(body), dict)
    except ApiError as error:
        assert (error.status, error.code) == (400, "invalid_json")
