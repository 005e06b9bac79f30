"""What clients send besides texts: scores, choices, lists, schemas, tools, and the routes of other APIs."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import numpy as np
import pytest

import edgekit
from edgekit.errors import UsageError
from edgekit.runtime import NumpyRuntime

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
GREEDY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
USER = [{"role": "user", "content": "Once upon a time"}]
CHATTED = {"messages": USER, "temperature": 0, "max_tokens": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
#: Texts that are longer than any limit here.
SAY = {"type": "object", "properties": {"text": {"type": "string", "minLength": 500}}, "required": ["text"]}
PAIR = {"type": "array", "prefixItems": [{"enum": ["cat", "dog"]}, {"type": "boolean"}], "items": False, "minItems": 2}


@pytest.fixture(scope="module")
def model(chatty):
    with edgekit.load(chatty, "numpy") as loaded:
        yield loaded


def refused(response, message):
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(message), response.text


def events(response):
    """The events of a stream that has names, as (name, data)."""
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        assert found[-1][0] == found[-1][1]["type"]
    return found


def chunks(response):
    assert response.text.endswith("data: [DONE]\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in response.text.split("\n\n")[:-2]]


# Lists, choices, scores.


def test_lists_of_prompts_and_choices(client, model):
    ask = client()
    prompts = ["Once upon a time", model.encode("The little dog")]
    said = ask.post(COMPLETIONS, json={**GREEDY, "prompt": prompts, "n": 2}).json()
    wanted = [model.generate(prompt, max_tokens=12) for prompt in prompts for _ in range(2)]
    assert [choice["text"] for choice in said["choices"]] == wanted
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2, 3]
    tokens = sum(len(model.encode(prompt)) if isinstance(prompt, str) else len(prompt) for prompt in prompts)
    assert said["usage"] == {"prompt_tokens": tokens, "completion_tokens": 48, "total_tokens": tokens + 48}


def test_choices_are_drawn_with_seeds_of_their_own(client, model):
    ask, options = client(), {"temperature": 1.0, "seed": 7, "n": 3, "max_tokens": 10}
    said = [choice["message"]["content"] for choice in ask.post(CHAT, json={**CHATTED, **options}).json()["choices"]]
    assert said == [model.chat(USER, temperature=1.0, seed=seed, max_tokens=10) for seed in (7, 8, 9)]
    parts = chunks(ask.post(CHAT, json={**CHATTED, **options, "stream": True}))
    for index in range(3):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == said[index]
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]


def test_one_bad_member_of_a_list(client):
    ask = client()
    refused(ask.post(COMPLETIONS, json={**GREEDY, "prompt": ["a", ""]}), "prompt must be a text, token ids")
    answer = ask.post(COMPLETIONS, json={**GREEDY, "prompt": ["a", [99_999]]})
    assert answer.status_code == 400
    answer = ask.post(COMPLETIONS, json={**GREEDY, "prompt": ["a", "Once " * 2000]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("route", "body"),
    [("completions", {"prompt": [[1, 2], [1, 600]]}), ("embeddings", {"input": [[1, 2], [1, 600]]})],
)
def test_one_token_outside_the_vocabulary(client, route, body):
    """The client is told, and gets nothing of the others; nobody looks for a fault in the log."""
    told = client().post(f"/v1/{route}", json=body)
    assert told.status_code == 400
    assert "600, the vocabulary has 0 to 511; use the model's own tokenizer" in told.json()["error"]["message"]


def test_scores_of_chats(client, model):
    ask, options = client(), {"logprobs": True, "top_logprobs": 3}
    said = ask.post(CHAT, json={**CHATTED, **options}).json()["choices"][0]
    text = model.stream(model.prompt(USER), max_tokens=12, logprobs=3)
    assert "".join(text) == said["message"]["content"]
    content = said["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [score.logprob for score in text.scores]
    assert (
        bytes(byte for entry in content for byte in entry["bytes"]).decode().strip()
        == said["message"]["content"].strip()
    )
    assert all(
        len(entry["top_logprobs"]) == 3 and entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in content
    )
    parts = chunks(ask.post(CHAT, json={**CHATTED, **options, "stream": True}))
    streamed = [entry for part in parts for entry in (part["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == content


def test_echo_with_scores(client, model):
    ask = client()
    said = ask.post(COMPLETIONS, json={**GREEDY, "echo": True, "logprobs": 2, "max_tokens": 3}).json()["choices"][0]
    text = model.generate("Once upon a time", max_tokens=3)
    assert said["text"] == f"Once upon a time{text}"
    scores, ids = said["logprobs"], model.encode("Once upon a time")
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    logits = model.logits(ids).astype(np.float64)
    for place, token in enumerate(ids[1:], 1):
        row = logits[place - 1]
        plain = row[token] - row.max() - math.log(np.exp(row - row.max()).sum())
        assert scores["token_logprobs"][place] == pytest.approx(plain, abs=2e-4)  # one pass, another order of sums
    assert len(scores["tokens"]) == len(ids) + 3
    assert scores["text_offset"] == sorted(scores["text_offset"])
    only = ask.post(COMPLETIONS, json={**GREEDY, "prompt": ids, "echo": True, "logprobs": 0, "max_tokens": 0}).json()
    assert len(only["choices"][0]["logprobs"]["tokens"]) == len(ids)
    assert only["usage"]["completion_tokens"] == 0


def test_options_of_sampling_change_what_is_drawn(client, model):
    ask, ids = client(), model.encode("Once upon a time")
    (first,) = model.tokens(ids, max_tokens=1)
    said = ask.post(COMPLETIONS, json={**GREEDY, "logit_bias": {str(first): -100}, "repetition_penalty": 1.2}).json()
    options = {"logit_bias": {first: -100}, "repetition_penalty": 1.2}
    assert said["choices"][0]["text"] == model.generate("Once upon a time", max_tokens=12, **options)
    said = ask.post(COMPLETIONS, json={**GREEDY, "stop_token_ids": [first]}).json()
    assert (said["choices"][0]["text"], said["choices"][0]["finish_reason"]) == ("", "stop")


# Embeddings.


def test_embeddings_of_token_ids_and_fewer_dimensions(client, model):
    ask, ids = client(), model.encode("Once upon a time")
    whole = model.embed("Once upon a time")
    said = ask.post(EMBEDDINGS, json={"input": [ids, "Once upon a time"], "dimensions": 8}).json()
    for entry in said["data"]:
        np.testing.assert_allclose(entry["embedding"], whole[:8] / np.linalg.norm(whole[:8]), rtol=1e-6)
    assert said["usage"]["prompt_tokens"] == 2 * len(ids)
    refused(ask.post(EMBEDDINGS, json={"input": "a", "dimensions": len(whole) + 1}), f"dimensions is {len(whole) + 1}")


def test_embeddings_count_the_token_that_ends_a_text(client, model):
    class Ending(NumpyRuntime):
        def end_of_text(self):
            return 2

    made = client(Ending).post(EMBEDDINGS, json={"input": ["Once upon", [5, 6]]}).json()
    assert made["usage"]["prompt_tokens"] == len(model.encode("Once upon")) + 1 + 2


def test_documents_in_order(client, model):
    documents = ["The dog ran home.", "Once upon a time", {"text": "cake"}]
    asked = {"query": "Once upon a time", "documents": documents}
    said = client().post("/v1/rerank", json={**asked, "top_n": 2}).json()
    texts = ["The dog ran home.", "Once upon a time", "cake"]
    cosines = [float(np.dot(model.embed("Once upon a time"), model.embed(text))) for text in texts]
    assert [result["index"] for result in said["results"]] == sorted(range(3), key=lambda i: -cosines[i])[:2]
    assert said["results"][0]["relevance_score"] == pytest.approx(1.0, abs=1e-6)
    assert said["results"][0]["document"] == {"text": "Once upon a time"}
    bare = client().post("/v1/rerank", json={**asked, "return_documents": False}).json()
    assert all(result.keys() == {"index", "relevance_score"} for result in bare["results"])
    refused(
        client().post("/v1/rerank", json={"query": "a", "documents": ["a", ""]}), "documents must be a list of 1 to 256"
    )
    refused(client().post("/v1/rerank", json={"documents": ["a"]}), "query must be a text, not empty")


def test_tokens_there_and_back(client, model):
    ask = client()
    said = ask.post("/tokenize", json={"prompt": "Once upon a time"}).json()
    assert said == {"tokens": model.encode("Once upon a time"), "count": 10, "max_model_len": 512}
    assert ask.post("/tokenize", json={"content": "Once upon a time"}).json() == said
    back = ask.post("/detokenize", json={"tokens": said["tokens"][1:]}).json()
    assert back["prompt"].strip() == "Once upon a time"
    assert ask.post("/detokenize", json={"tokens": []}).json()["content"] == ""
    refused(ask.post("/detokenize", json={"tokens": [512]}), "token id 512; ids are 0 to 511")
    refused(ask.post("/tokenize", json={}), "prompt must be a text")


def test_the_card_says_what_the_model_can(client):
    card = client().get("/v1/models").json()["data"][0]
    assert card["context_length"] == card["max_model_len"] == 512
    assert {"completion", "chat", "tools", "embeddings", "tokenize"} <= set(card["capabilities"])


def test_keys_as_anthropics_clients_send_them(client):
    key = "k-0123456789abcdef"
    ask = client(keys=frozenset({key}))
    assert ask.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    assert ask.get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 401
    wrong = ask.post("/v1/messages", json={}, headers={"x-api-key": "wrong"}).json()
    assert wrong == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "no API key, or a wrong one"},
    }


def test_a_lenient_server(client):
    asked = {**GREEDY, "frobnicate": 1, "suffix": "x"}
    refused(client().post(COMPLETIONS, json=asked), 'suffix is "x"')
    assert client(lenient=True).post(COMPLETIONS, json=asked).status_code == 200


# Schemas and tools.


@pytest.fixture
def structured():
    return pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")


@pytest.mark.usefixtures("structured")
def test_answers_that_follow_a_schema(client):
    ask, hot = client(), {"messages": USER, "temperature": 1.5, "seed": 3}
    form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": PAIR, "strict": True}}
    for _ in range(3):
        said = ask.post(CHAT, json={**hot, "response_format": form}).json()["choices"][0]
        animal, flag = json.loads(said["message"]["content"])
        assert animal in ("cat", "dog") and isinstance(flag, bool)  # noqa: PT018
        assert said["finish_reason"] == "stop"
    said = ask.post(CHAT, json={**hot, "regex": "[ab]{3}"}).json()["choices"][0]["message"]["content"]
    assert set(said) <= {"a", "b"}
    said = ask.post(COMPLETIONS, json={"prompt": "a", "grammar": 'start: "x" | "y"', "temperature": 1.0}).json()
    assert said["choices"][0]["text"] in ("x", "y")
    said = ask.post(CHAT, json={**hot, "response_format": {"type": "json_object"}, "max_tokens": 20}).json()
    assert said["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.usefixtures("structured")
def test_schemas_that_are_refused(client):
    ask = client()
    for schema, message in (
        ({"enum": []}, "the schema or grammar: Unsatisfiable schema: anyOf is empty"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(20_000)}}, "json_schema: it has "),
        ({"$ref": "http://example.org/x"}, "the schema or grammar: Resource"),
    ):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        refused(ask.post(CHAT, json={**CHATTED, "response_format": form}), message)
    refused(ask.post(CHAT, json={**CHATTED, "regex": "("}), "the schema or grammar: at 1(8): invalid regex")
    assert ask.get("/health").status_code == 200


@pytest.mark.usefixtures("structured")
def test_a_call_that_is_demanded(client):
    ask = client()
    asked = {"messages": USER, "temperature": 1.0, "seed": 2, "tools": [WEATHER], "tool_choice": "required"}
    asked["parallel_tool_calls"] = False
    choice = ask.post(CHAT, json=asked).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert json.loads(call["function"]["arguments"])["days"] in range(1, 10)

    parts = [part["choices"][0] for part in chunks(ask.post(CHAT, json={**asked, "stream": True}))]
    calls = [call for part in parts for call in part["delta"].get("tool_calls", ())]
    assert (calls[0]["id"] != call["id"], calls[0]["function"]["name"]) == (True, "get_weather")
    assert "".join(each["function"]["arguments"] for each in calls) == call["function"]["arguments"]
    assert len(calls) > 2, "arguments come in pieces"
    assert parts[-1]["finish_reason"] == "tool_calls"


@pytest.mark.usefixtures("structured")
def test_a_round_trip_of_a_call(client):
    ask = client()
    asked = {"temperature": 0, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    message = ask.post(CHAT, json={"messages": USER, **asked}).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
    said = ask.post(CHAT, json={**CHATTED, "messages": [*USER, message, result], "tools": [WEATHER]}).json()
    assert said["choices"][0]["message"]["role"] == "assistant"


def test_malformed_tools(client):
    ask = client()
    for change, message in (
        ({"tools": [{}]}, "tools[0] must be an object with type function"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice 'always'; choose auto, none, required"),
        ({"tools": [WEATHER, WEATHER]}, "tools has two functions of one name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]}, "tools[0].function.parameters"),
    ):
        refused(ask.post(CHAT, json={**CHATTED, **change}), message)


@pytest.mark.usefixtures("structured")
def test_tools_with_broken_parameters(client):
    """A schema that nothing reads is refused where a call of it is demanded, and told to the model as it is elsewhere."""
    ask = client()
    for schema, message in (
        ({"type": "frob"}, "the schema or grammar: "),
        ({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, "the schema or grammar: "),
        ({"$ref": "http://example.org/x"}, "the schema or grammar: "),
    ):
        tools = [{"type": "function", "function": {"name": "a", "parameters": schema}}]
        asked = {**CHATTED, "tools": tools}
        refused(ask.post(CHAT, json={**asked, "tool_choice": "required"}), message)
        assert ask.post(CHAT, json=asked).status_code == 200


@pytest.mark.usefixtures("structured")
def test_arguments_that_are_cut_off(client):
    """They come as far as they are, in every API, and streamed."""
    ask = client()
    tools = [{"type": "function", "function": {"name": "say", "parameters": SAY}}]
    asked = {"messages": USER, "tools": tools, "tool_choice": "required", "temperature": 0, "max_tokens": 60}
    choice = ask.post(CHAT, json=asked).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]["name"]) == ("length", "say")
    with pytest.raises(ValueError, match="Unterminated string"):
        json.loads(call["function"]["arguments"])
    parts = [part["choices"][0] for part in chunks(ask.post(CHAT, json={**asked, "stream": True}))]
    calls = [call for part in parts for call in part["delta"].get("tool_calls", ())]
    assert "".join(each["function"]["arguments"] for each in calls) == call["function"]["arguments"]
    assert parts[-1]["finish_reason"] == "length"

    told = [{"name": "say", "input_schema": SAY}]
    said = ask.post("/v1/messages", json={**asked, "tools": told, "tool_choice": {"type": "any"}}).json()
    assert said["stop_reason"] == "max_tokens"
    told = [{"type": "function", "name": "say", "parameters": SAY}]
    body = {"input": USER, "tools": told, "tool_choice": "required", "temperature": 0, "max_output_tokens": 60}
    said = ask.post("/v1/responses", json=body).json()
    assert (said["status"], said["output"][0]["arguments"]) == ("incomplete", call["function"]["arguments"])


def test_reasoning_is_set_apart(client, chatty):
    """A model whose template begins it, and which says what it is told to."""

    class Thinking(NumpyRuntime):
        def template(self):
            return "{{ messages[0].content }}<think>\n{{ '</think>' if false }}{{ enable_thinking }}"

        def pieces(self, prompt, tokens):
            next(tokens)
            yield from ("So it", " is.\n</thi", "nk>\n\nIt", " is noon.")

    ask = client(Thinking)
    message = ask.post(CHAT, json=CHATTED).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("So it is.", "It is noon.")
    parts = [part["choices"][0]["delta"] for part in chunks(ask.post(CHAT, json={**CHATTED, "stream": True}))]
    assert "".join(part.get("reasoning_content", "") for part in parts) == "So it is."
    assert "".join(part.get("content") or "" for part in parts) == "It is noon."
    history = [*USER, {"role": "assistant", "content": "x", "reasoning_content": "y"}, *USER]
    asked = {"messages": history, "max_tokens": 3, "reasoning_effort": "none", "chat_template_kwargs": {"a": 1}}
    assert ask.post(CHAT, json=asked).status_code == 200

    blocks = ask.post("/v1/messages", json={"messages": USER, "max_tokens": 9}).json()["content"]
    assert [(block["type"], block.get("text") or block["thinking"]) for block in blocks] == [
        ("thinking", "So it is."),
        ("text", "It is noon."),
    ]
    items = ask.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 9}).json()["output"]
    assert [(item["type"], item["content"][0]["text"]) for item in items] == [
        ("reasoning", "So it is."),
        ("message", "It is noon."),
    ]


def test_an_answer_that_is_begun(client, model):
    begun = [*USER, {"role": "assistant", "content": " there was"}]
    said = client().post(CHAT, json={**CHATTED, "messages": begun, "continue_final_message": True}).json()
    wanted = model.generate("Once upon a time there was", max_tokens=12)
    assert said["choices"][0]["message"]["content"] == wanted
    said = client().post("/v1/messages", json={**CHATTED, "messages": begun}).json()
    assert said["content"][0]["text"] == wanted


# The Responses API.


def test_responses(client, model):
    ask = client()
    said = ask.post(
        "/v1/responses", json={"input": "Once upon a time", "temperature": 0, "max_output_tokens": 12}
    ).json()
    assert (said["object"], said["status"], said["id"][:5]) == ("response", "incomplete", "resp_")
    assert said["incomplete_details"] == {"reason": "max_output_tokens"}
    wanted = model.generate("Once upon a time", max_tokens=12)
    assert said["output"][0]["content"][0]["text"] == wanted
    assert said["usage"]["total_tokens"] == 22
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Once upon"}]},
             {"type": "message", "role": "user", "content": " a time"}]  # fmt: skip
    again = ask.post("/v1/responses", json={"input": items, "temperature": 0, "max_output_tokens": 12}).json()
    assert again["output"][0]["content"][0]["text"] == wanted


def test_streamed_responses(client, model):
    asked = {"input": "Once upon a time", "temperature": 0, "max_output_tokens": 12, "stream": True}
    found = events(client().post("/v1/responses", json=asked))
    names = [name for name, _ in found]
    deltas = [data["delta"] for name, data in found if name == "response.output_text.delta"]
    assert names[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert names[4 + len(deltas) :] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert "".join(deltas) == model.generate("Once upon a time", max_tokens=12)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert found[-1][1]["response"]["usage"]["output_tokens"] == 12


@pytest.mark.usefixtures("structured")
def test_responses_with_tools(client):
    ask = client()
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    asked = {"input": "Hi", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    said = ask.post("/v1/responses", json=asked).json()
    (call,) = said["output"]
    assert (call["type"], call["name"], said["status"]) == ("function_call", "get_weather", "completed")
    found = events(ask.post("/v1/responses", json={**asked, "stream": True}))
    arguments = "".join(data["delta"] for name, data in found if name == "response.function_call_arguments.delta")
    assert arguments == call["arguments"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
    items = [{"role": "user", "content": "Hi"}, call, output]
    assert ask.post("/v1/responses", json={"input": items, "tools": [tool], "max_output_tokens": 3}).status_code == 200
    form = {"format": {"type": "json_schema", "name": "pair", "schema": PAIR}}
    said = ask.post("/v1/responses", json={"input": "Hi", "text": form, "temperature": 1.0}).json()
    assert len(json.loads(said["output"][0]["content"][0]["text"])) == 2


def test_responses_that_are_refused(client):
    ask = client()
    for change, message in (
        ({"input": ""}, "input must be a text, not empty, or a list of items"),
        ({"input": [{"type": "image"}]}, "input[0]: only items of type message, function_call"),
        ({"previous_response_id": "resp_1"}, 'previous_response_id is "resp_1"; it is not supported'),
        ({"background": True}, "background is true; only false is supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: only tools of type function are supported"),
        ({"frobnicate": 1}, 'unknown parameter "frobnicate"'),
    ):
        refused(ask.post("/v1/responses", json={"input": "a", **change}), message)


# Anthropic's Messages API.


def test_messages(client, model):
    ask = client()
    asked = {
        "system": "Once",
        "messages": [{"role": "user", "content": " upon a time"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    said = ask.post("/v1/messages", json=asked).json()
    wanted = model.generate("Once upon a time", max_tokens=12)
    assert said["content"] == [{"type": "text", "text": wanted}]
    assert (said["type"], said["role"], said["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert said["usage"] == {"input_tokens": 10, "output_tokens": 12}
    found = events(ask.post("/v1/messages", json={**asked, "stream": True}))
    names = [name for name, _ in found]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(data["delta"]["text"] for name, data in found if name == "content_block_delta") == wanted
    assert found[-2][1]["usage"]["output_tokens"] == 12


@pytest.mark.usefixtures("structured")
def test_messages_with_tools(client):
    ask = client()
    tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    asked = {"messages": USER, "temperature": 0, "max_tokens": 100, "tools": [tool], "tool_choice": choice}
    said = ask.post("/v1/messages", json=asked).json()
    (block,) = said["content"]
    assert (said["stop_reason"], block["type"], block["name"]) == ("tool_use", "tool_use", "get_weather")
    found = events(ask.post("/v1/messages", json={**asked, "stream": True}))
    pieces = [data["delta"]["partial_json"] for name, data in found if name == "content_block_delta"]
    assert json.loads("".join(pieces)) == block["input"]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": "rain"},
                                          {"type": "text", "text": "So?"}]}  # fmt: skip
    history = [*USER, {"role": "assistant", "content": said["content"]}, result]
    assert ask.post("/v1/messages", json={"messages": history, "max_tokens": 3, "tools": [tool]}).status_code == 200


def test_messages_that_are_refused(client):
    ask = client()
    for change, message in (
        ({"messages": []}, "messages must be a list of at least one message"),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            "messages[0] must be an object with a role, user or assistant",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0]: only blocks of type",
        ),
        ({"tools": [{"name": "a"}]}, "tools[0] must be an object with name, description and input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice demands a call, and there are no tools"),
        ({"frobnicate": 1}, 'unknown parameter "frobnicate"'),
    ):
        answer = ask.post("/v1/messages", json={"messages": USER, "max_tokens": 3, **change})
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        refused(answer, message)


# Runtimes that have less.


def test_a_runtime_that_only_chats(client):
    class Chatting:
        name = "chatting"

        def __init__(self, model):
            self.logits, self.generate, self.stream = model.logits, model.generate, model.stream
            self.chat, self.chat_stream, self.prompt, self.close = (
                model.chat,
                model.chat_stream,
                model.prompt,
                model.close,
            )

        @classmethod
        def open(cls, artifact):
            return cls(NumpyRuntime.open(artifact))

    ask = client(Chatting)
    assert ask.post(CHAT, json=CHATTED).status_code == 200
    refused(ask.post(CHAT, json={**CHATTED, "tools": [WEATHER]}), "the runtime 'chatting' has no tools in chats")
    refused(ask.post("/tokenize", json={"prompt": "a"}), "the runtime 'chatting' has no tokenization")
    refused(
        ask.post(COMPLETIONS, json={**GREEDY, "echo": True, "logprobs": 1}), "the runtime 'chatting' has no log prob"
    )


# Adapters.


class Adapting(NumpyRuntime):
    """Its adapters are biases: each makes its own token certain."""

    TOKENS: ClassVar[dict[str, int]] = {"poet": 70, "cook": 80}

    def adapters(self):
        return list(self.TOKENS)

    def adapted(self, scales):
        made = Adapted.open(self.artifact)
        made.biases = {self.TOKENS[name]: scale * 100 for name, scale in scales.items()}
        return made


class Adapted(NumpyRuntime):
    biases: ClassVar[dict[int, float]] = {}

    def stream(self, prompt, **options):
        return super().stream(prompt, logit_bias=self.biases, **options)

    def reply(self, messages, **options):
        return super().reply(messages, logit_bias=self.biases, **options)

    def embed(self, text):
        return np.full(3, len(self.biases), np.float32)


def test_adapters_by_request(client, model):
    ask = client(Adapting)
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 2}
    poet, cook = (model.generate("Once upon a time", max_tokens=2, logit_bias={token: 100}) for token in (70, 80))
    plain = model.generate("Once upon a time", max_tokens=2)
    assert len({poet, cook, plain}) == 3
    for change, wanted in (
        ({}, plain),
        ({"lora": []}, plain),
        ({"lora": [{"id": 0, "scale": 1.0}]}, poet),
        ({"lora": [{"id": "poet", "scale": 1}]}, poet),
        ({"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]}, cook),
        ({"model": "cook"}, cook),
        ({"model": "cook", "lora": [{"id": 0, "scale": 1.0}]}, poet),
        ({"model": "chatty"}, plain),
    ):
        assert ask.post(COMPLETIONS, json={**body, **change}).json()["choices"][0]["text"] == wanted, change
    said = ask.post(CHAT, json={"model": "poet", "messages": USER, "temperature": 0, "max_tokens": 2}).json()
    assert said["choices"][0]["message"]["content"] == poet
    made = ask.post(EMBEDDINGS, json={"model": "poet", "input": "a"}).json()["data"][0]["embedding"]
    assert made == [1, 1, 1]
    assert ask.post("/tokenize", json={"model": "poet", "prompt": "a"}).status_code == 200
    assert ask.get("/lora-adapters").json() == [
        {"id": 0, "name": "poet", "scale": 0.0},
        {"id": 1, "name": "cook", "scale": 0.0},
    ]
    cards = ask.get("/v1/models").json()["data"]
    assert [(card["id"], card.get("parent")) for card in cards] == [
        ("chatty", None),
        ("poet", "chatty"),
        ("cook", "chatty"),
    ]
    assert ask.get("/v1/models/cook").json()["parent"] == "chatty"


def test_adapters_that_are_refused(client):
    ask, none = client(Adapting), client()
    for lora, message in (
        ("poet", 'lora is "poet"; it must be a list of at most 2 adapters'),
        ([{"id": 0, "scale": 1}] * 3, "lora is ["),
        ([{"id": 2, "scale": 1}], "lora[0] is "),
        ([{"id": "judge", "scale": 1}], "lora[0] is "),
        ([{"id": [], "scale": 1}], "lora[0] is "),
        ([{"id": True, "scale": 1}], "lora[0] is "),
        ([{"id": 0}], "lora[0] is "),
        ([7], "lora[0] is 7; it must have a scale, and the id of one of 0 (poet), 1 (cook)"),
        ([{"id": 0, "scale": 1e9}], "scale is 1000000000.0; it must be a number from -100 to 100"),
        ([{"id": 0, "scale": 1, "path": "x"}], 'unknown parameter "path"'),
    ):
        refused(ask.post(COMPLETIONS, json={**GREEDY, "lora": lora}), message)
    refused(none.post(COMPLETIONS, json={**GREEDY, "lora": [{"id": 0, "scale": 1}]}), "lora is given, and this server")
    assert none.post(COMPLETIONS, json={**GREEDY, "lora": []}).status_code == 200
    assert none.get("/lora-adapters").json() == []
    told = ask.post(COMPLETIONS, json={**GREEDY, "model": "judge"})
    assert told.status_code == 404
    assert told.json()["error"]["message"].endswith("this server has 'chatty', 'poet', 'cook'")


def test_names_of_adapters(client):
    class Twin(Adapting):
        TOKENS: ClassVar[dict[str, int]] = {"chatty": 1}

    with pytest.raises(UsageError, match=r"adapter name .chatty.; choose letters, .* another name than the model's"):
        client(Twin)
