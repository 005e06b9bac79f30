"""What is recorded of finished texts: lengths, ends, refusals and, if asked for, confidence; never content."""

from __future__ import annotations

import logging
import math

import pytest

import edgekit
from edgekit.runtime import NumpyRuntime
from edgekit_serve.command import _JsonLines
from edgekit_serve.outcomes import refuses

ROUTE = "/v1/completions"
GREEDY = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}


def samples(ask):
    lines = ask.get("/metrics").text.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I cannot assist with this request.", True),
        ("As an AI language model, I am unable to browse.", True),
        ("Unfortunately, I am not able to do so.", True),
        ("I cannot provide that.", True),
        ("The cat was sorry. It slept.", False),
        ("I can help with that: first, boil the water.", False),
        ("You cannot provide too much detail.", False),
        ("Once upon a time " * 20 + "I'm sorry, I can't", False),
        ("", False),
    ],
)
def test_refusals(text, refused):
    assert refuses(text) is refused


def test_lengths_and_ends_are_counted(client):
    ask = client()
    ask.post(ROUTE, json={**GREEDY, "n": 2})
    ask.post(ROUTE, json={**GREEDY, "stream": True})
    ask.post(ROUTE, json={**GREEDY, "stop_token_ids": [5], "logit_bias": {"5": 100}})
    ask.post(ROUTE, json={**GREEDY, "max_tokens": "many"})
    told = samples(ask)
    assert told['edgekit_texts_total{finish="length",model="chatty"}'] == "3.0"
    assert told['edgekit_texts_total{finish="stop",model="chatty"}'] == "1.0"
    assert told['edgekit_text_tokens_bucket{le="4.0",model="chatty"}'] == "1.0"
    assert told['edgekit_text_tokens_bucket{le="8.0",model="chatty"}'] == "4.0"
    assert told['edgekit_text_tokens_sum{model="chatty"}'] == "19.0"
    assert told['edgekit_refusals_total{model="chatty"}'] == "0.0"
    assert 'edgekit_text_confidence_count{model="chatty"}' not in told, "it is recorded only if asked for"


def test_a_refusal_is_counted(client):
    class Refusing(NumpyRuntime):
        """Says no, whatever it is asked."""

        def stream(self, prompt, **options):
            text = super().stream(prompt, **options)
            list(text)
            text.pieces = iter(["I'm sorry, but ", "I can't help with that."])
            return text

    ask = client(Refusing)
    ask.post(ROUTE, json=GREEDY)
    assert samples(ask)['edgekit_refusals_total{model="chatty"}'] == "1.0"


@pytest.mark.parametrize("streamed", [False, True])
def test_confidence_is_recorded_and_not_sent(client, chatty, streamed):
    ask = client(confidence=True)
    answer = ask.post(ROUTE, json={**GREEDY, "stream": streamed})
    assert '"logprobs":null' in answer.text.replace(" ", "")
    assert "token_logprobs" not in answer.text
    with edgekit.load(chatty, "numpy") as model:
        text = model.stream(GREEDY["prompt"], max_tokens=6, logprobs=0)
        list(text)
    expected = math.exp(sum(score.logprob for score in text.scores) / len(text.scores))
    told = samples(ask)
    assert told['edgekit_text_confidence_count{model="chatty"}'] == "1.0"
    assert float(told['edgekit_text_confidence_sum{model="chatty"}']) == pytest.approx(expected, rel=1e-4)


def test_scores_that_are_asked_for_are_sent(client):
    ask = client(confidence=True)
    answer = ask.post(ROUTE, json={**GREEDY, "logprobs": 2}).json()
    assert [len(top) for top in answer["choices"][0]["logprobs"]["top_logprobs"]] == [2] * 6


def test_the_log_has_the_outcomes_and_no_text(client, caplog):
    ask = client(confidence=True)
    with caplog.at_level(logging.INFO):
        ask.post(ROUTE, json={**GREEDY, "prompt": "Once upon a secret", "n": 2})
        ask.get("/health")
    asked, health = (record for record in caplog.records if record.name == "edgekit_serve")
    line = _JsonLines().format(asked)
    assert "secret" not in line
    assert asked.fields["model"] == "chatty"
    first, second = asked.fields["texts"]
    assert first == second
    assert {**first, "confidence": 0} == {"tokens": 6, "finish": "length", "refused": False, "confidence": 0}
    assert 0 < first["confidence"] <= 1
    assert "texts" not in health.fields
