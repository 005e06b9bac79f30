"""Texts under a schema, as many as it takes to meet what is rare: too many to run for every Python that the core is tested with."""

from __future__ import annotations

import json

import pytest

from edgekit import sample
from edgekit.pipeline import open_artifact
from edgekit.runtime.numpy import NumpyRuntime

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


def is_pair(found):
    return isinstance(found, list) and len(found) == 2 and found[0] in ("cat", "dog") and found[1] in range(1000)


def test_500_texts_under_a_schema(model):
    """Hot enough for anything: each one parses and is valid."""
    pair = {
        "type": "array",
        "prefixItems": [{"enum": ["cat", "dog"]}, {"type": "integer", "minimum": 0, "maximum": 999}],
    }
    pair |= {"items": False, "minItems": 2}
    wrong, texts = [], set()
    for seed in range(500):
        text = model.stream(PROMPT, json_schema=SCHEMA if seed % 50 == 0 else pair, temperature=1.5, seed=seed)
        said = "".join(text)
        texts.add(said)
        found = json.loads(said) if text.finish_reason == "stop" else None
        right = is_valid(found) if isinstance(found, dict) else is_pair(found)
        if not right:
            wrong.append(said)
    assert wrong == []
    assert len(texts) > 300
