"""Texts that follow a schema, a regular expression or a grammar, and what none can follow."""

from __future__ import annotations

import json
import re
import threading
import time

import attrs
import numpy as np
import pytest

from edgekit import sample
from edgekit.errors import MissingPluginError, UsageError
from edgekit.pipeline import open_artifact
from edgekit.runtime import NumpyRuntime
from edgekit.runtime import _structured as room
from edgekit.tokenizer._record import Tokenizer

pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
PROMPT = "Once upon a time"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    with NumpyRuntime.open(open_artifact(sample.path())) as runtime:
        yield runtime


def is_valid(found):
    """Whether a value is what SCHEMA says, in plain code."""
    return (
        found.keys() == SCHEMA["properties"].keys()
        and isinstance(found["name"], str)
        and len(found["name"]) <= 8
        and type(found["age"]) is int
        and 0 <= found["age"] <= 150
        and found["kind"] in ("cat", "dog", None)
        and isinstance(found["tags"], list)
        and len(found["tags"]) <= 3
        and all(type(tag) is bool for tag in found["tags"])
    )


def test_regular_expressions_and_grammars(model):
    for seed in range(10):
        options = {"temperature": 1.5, "seed": seed}
        assert re.fullmatch(r"[A-C]{3}-\d\d", model.generate(PROMPT, regex=r"[A-C]{3}-\d\d", **options))
        grammar = 'start: "yes" | "no" " "? /[x-z]{2}/'
        assert re.fullmatch(r"yes|no ?[x-z]{2}", model.generate(PROMPT, grammar=grammar, **options))


def test_any_json_without_a_schema(model):
    text = model.stream(PROMPT, json_schema={"type": "object"}, max_tokens=300, temperature=1.0, seed=2)
    said = "".join(text)
    assert said.startswith("{")
    assert text.finish_reason == "length" or isinstance(json.loads(said), dict)


def test_a_text_that_is_cut_off_says_so(model):
    text = model.stream(PROMPT, json_schema=SCHEMA, max_tokens=5)
    assert "".join(text).startswith("{")
    assert text.finish_reason == "length"


def test_scores_and_penalties_go_with_a_schema(model):
    options = {"logprobs": 2, "presence_penalty": 2.0, "repetition_penalty": 1.5, "logit_bias": {9: 100}}
    text = model.stream(PROMPT, json_schema=SCHEMA, temperature=1.0, seed=5, **options)
    said = "".join(text)
    assert is_valid(json.loads(said))
    assert b"".join(score.text for score in text.scores).decode() == said


def test_a_recursive_schema(model):
    """One that can end does; one that cannot ends where the tokens do."""
    tree = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}},
        "additionalProperties": False,
    }
    for seed in range(5):
        text = model.stream(PROMPT, json_schema=tree, temperature=1.0, seed=seed, max_tokens=200)
        said = "".join(text)
        assert text.finish_reason == "length" or json.loads(said).keys() <= {"a"}
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
    text = model.stream(PROMPT, json_schema=endless, max_tokens=40)
    assert "".join(text).count("{") > 2
    assert (text.finish_reason, text.completion_tokens) == ("length", 40)


HUGE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}
REFUSED = [
    ({"json_schema": False}, "json_schema: nothing satisfies false"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}},
     "the schema or grammar: Unsatisfiable schema: minimum (5) is greater than maximum (3)"),
    ({"json_schema": {"enum": []}}, "the schema or grammar: Unsatisfiable schema: anyOf is empty"),
    ({"json_schema": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
     "the schema or grammar: nothing matches it"),
    ({"json_schema": {"type": "frob"}}, "the schema or grammar: Invalid type: frob"),
    ({"json_schema": {"$ref": "http://example.org/a"}}, "the schema or grammar: Resource 'http://example.org/a' is not present"),
    ({"json_schema": HUGE}, "json_schema: it has "),
    ({"json_schema": "{"}, "json_schema: it is not JSON"),
    ({"json_schema": [1]}, "json_schema: it must be an object, or true or false"),
    ({"json_schema": {"a": {1, 2}}}, "json_schema: it is not JSON"),
    ({"regex": "("}, "the schema or grammar: at 1(8): invalid regex"),
    ({"regex": "(" * 100_000 + "a" + ")" * 100_000}, "the schema or grammar: at 1(8): invalid regex"),
    ({"regex": ""}, "regex: it must be a text, not empty"),
    ({"regex": "a" * 300_000}, "regex: it has 300,000 characters; at most 262,144"),
    ({"grammar": "start: nothing"}, 'the schema or grammar: at 1(8): unknown name: "nothing"'),
    ({"grammar": "start: start"}, "the schema or grammar: nothing matches it"),
    ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "the schema or grammar: 1(37): lark grammar too deeply nested"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_nothing_can_follow(model, option, message):
    began = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        model.stream(PROMPT, **option)
    assert str(caught.value).startswith(message)
    assert caught.value.public == str(caught.value)
    assert time.perf_counter() - began < 2 * room.PATIENCE


def test_a_schema_nested_too_deeply(model):
    schema = {"type": "string"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="recursion limit"):
        model.stream(PROMPT, json_schema=schema)


def test_compiling_is_limited_in_time(model, monkeypatch):
    """Compiling is held up until it was refused; otherwise a quick thread may be done before it is waited for."""
    refused = threading.Event()
    tokenizer = room.Words._tokenizer

    def held_up(words):
        refused.wait(30)
        return tokenizer(words)

    monkeypatch.setattr(room.Words, "_tokenizer", held_up)
    monkeypatch.setattr(room, "PATIENCE", 0.0)
    with pytest.raises(UsageError, match="it was not compiled within 0 seconds; make it smaller"):
        model.stream(PROMPT, json_schema={"type": "integer"})
    refused.set()


def test_a_vocabulary_without_an_end(model):
    """The text ends where the grammar is complete, as there is no token to end it."""
    tokenizer = Tokenizer(**{**attrs.asdict(model.tokenizer(), recurse=False), "eos": None, "json": None})
    assert tokenizer.end_ids <= {1}
    with NumpyRuntime.open(attrs.evolve(model.artifact)) as other:
        words = room.Words([tokenizer.piece(i, False) for i in range(len(tokenizer.tokens))], [0, 1], [])
        other.__dict__["_words"] = words
        text = other.stream(PROMPT, regex="[ab]{4}", temperature=1.0)
        assert re.fullmatch("[ab]{4}", "".join(text))
        assert text.finish_reason == "stop"


def test_spare_rows_of_the_matrix_are_never_chosen():
    words = room.Words([b"a", b"b", b"</s>"], [2], [2])
    matcher = words.matcher(room.Grammar.of(json_schema=None, regex="ab", grammar=None))
    allowed = matcher.allowed(np.zeros(5, np.float32))
    np.testing.assert_array_equal(allowed, [0, -np.inf, -np.inf, -np.inf, -np.inf])
    matcher.chosen(0)
    matcher.chosen(1)
    np.testing.assert_array_equal(np.isfinite(matcher.allowed(np.zeros(5, np.float32))), [0, 0, 1, 0, 0])


def test_without_llguidance(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingPluginError, match=r"pip install 'edgekit-core\[structured\]'"):
        model.generate(PROMPT, regex="a")
