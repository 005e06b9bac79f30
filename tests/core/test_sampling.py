"""Sampling beyond temperature: penalties, biases, min_p, scores and stop tokens, against plain code token by token."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import sample
from edgekit.errors import UsageError
from edgekit.pipeline import open_artifact
from edgekit.runtime import NumpyRuntime, Sampling
from edgekit.runtime._watch import TokenScore

PROMPT = "Once upon a time there was a little"
#: A forward pass token by token and one over all of them differ in the order of float32 sums.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def model():
    with NumpyRuntime.open(open_artifact(sample.path())) as runtime:
        yield runtime


def adjusted(logits, prompt, text, options):
    """Scores after bias and penalties, one token at a time, as the documentation words it."""
    scores = [float(value) for value in logits]
    for token, value in options.get("logit_bias", {}).items():
        scores[int(token)] += value
    for token in set(prompt) | set(text):
        penalty = options.get("repetition_penalty", 1.0)
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(text):
        scores[token] -= options.get("presence_penalty", 0) + text.count(token) * options.get("frequency_penalty", 0)
    return scores


def survivors(scores, options):
    """The tokens that top_k, min_p and top_p leave, by sorting."""
    exponentials = [math.exp((score - max(scores)) / options["temperature"]) for score in scores]
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: options.get("top_k") or None]
    order = [token for token in order if exponentials[token] >= options.get("min_p", 0)]
    total, before, kept = sum(exponentials[token] for token in order), 0.0, []
    for token in order:
        if before < options.get("top_p", 1.0) * total:
            kept.append(token)
        before += exponentials[token]
    return kept


ADJUSTING = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.0, "frequency_penalty": 2.0, "repetition_penalty": 1.1},
    {"logit_bias": {5: -100, 40: 3.5}},
    {"logit_bias": {"7": 100.0}},
]


@pytest.mark.parametrize("options", ADJUSTING, ids=str)
def test_greedy_texts_follow_the_penalties(model, options):
    prompt, text = model.encode(PROMPT), []
    chosen = list(model.tokens(prompt, max_tokens=24, sampling=Sampling(**options)))
    logits = model.logits(prompt + chosen)[len(prompt) - 1 :]
    for token, row in zip(chosen, logits, strict=False):
        scores = adjusted(row, prompt, text, options)
        assert scores[token] >= max(scores) - 1e-3, "the largest, up to the rounding of float32"
        text.append(token)


@pytest.mark.parametrize("options", ADJUSTING, ids=str)
def test_choices_from_noise_follow_the_penalties(options):
    """Where scores are close, what each option does decides."""
    random, prompt, text = np.random.default_rng(7), [3, 5, 5, 11], []
    choose, plain = Sampling(**options).sampler(prompt), []
    for _ in range(200):
        logits = random.normal(0, 1, 50).astype(np.float32)
        scores = adjusted(logits, prompt, text, options)
        before, token = logits.copy(), choose(logits)
        assert token == int(np.argmax(scores))
        np.testing.assert_array_equal(logits, before)
        plain.append(int(logits.argmax()))
        text.append(token)
    assert text != plain


@settings(max_examples=60)
@given(st.data())
def test_what_is_drawn_survives(data):
    """Every drawn token is one that the plain definition keeps, and each of few that it keeps is drawn."""
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    logits = random.normal(0, 2, data.draw(st.integers(2, 600))).astype(np.float32)
    options = {
        "temperature": data.draw(st.sampled_from([0.5, 1.0, 1.5])),
        "min_p": data.draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0])),
        "top_k": data.draw(st.sampled_from([0, 1, 5, 50])),
        "top_p": data.draw(st.sampled_from([1.0, 0.9, 0.4])),
    }
    choose, kept = Sampling(**options, seed=3).sampler(), survivors(logits, options)
    drawn = {choose(logits) for _ in range(300)}
    # A token at the very edge may fall to either side of it in float32.
    edge = {
        token for token in drawn - set(kept) if survivors(logits + 1e-4 * (np.arange(len(logits)) == token), options)
    }
    assert drawn <= set(kept) | edge
    if len(kept) <= 2:
        assert drawn >= {kept[0]}
    assert Sampling(**options).probabilities(logits)[list(drawn)].min() > 0


def test_min_p_keeps_what_is_likely_enough():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    np.testing.assert_allclose(Sampling(1.0, min_p=0.4).probabilities(logits), [2 / 3, 1 / 3, 0, 0], rtol=1e-6)
    choose = Sampling(1.0, min_p=0.4, seed=1).sampler()
    counts = np.bincount([choose(logits) for _ in range(3000)], minlength=4) / 3000
    np.testing.assert_allclose(counts, [2 / 3, 1 / 3, 0, 0], atol=0.04)  # five standard deviations


def test_scores_are_the_log_softmax_of_the_logits(model):
    text = model.stream(PROMPT, max_tokens=12, temperature=0.9, seed=4, logprobs=5, presence_penalty=1.0)
    said = "".join(text)
    assert b"".join(score.text for score in text.scores).decode().strip() == said.strip()
    ids = model.encode(PROMPT)
    logits = model.logits(ids + [score.token for score in text.scores]).astype(np.float64)
    for number, score in enumerate(text.scores):
        row = logits[len(ids) - 1 + number]
        plain = row - row.max() - math.log(sum(math.exp(value - row.max()) for value in row))
        np.testing.assert_allclose(score.logprob, plain[score.token], **CLOSE)
        best = sorted(range(len(plain)), key=lambda token: -plain[token])[:5]
        np.testing.assert_allclose([top.logprob for top in score.top], plain[best], **CLOSE)
        assert [top.logprob for top in score.top] == sorted((top.logprob for top in score.top), reverse=True)
    assert TokenScore.of(text.scores[0].to_dict()) == text.scores[0]


def test_scores_change_no_text_and_leave_out_the_end(model):
    plain = model.generate(PROMPT, max_tokens=20, temperature=1.0, seed=8)
    text = model.stream(PROMPT, max_tokens=20, temperature=1.0, seed=8, logprobs=0)
    assert "".join(text) == plain
    assert [score.top for score in text.scores] == [()] * len(text.scores)
    end = next(iter(model.tokenizer().end_ids))
    ended = model.stream(PROMPT, max_tokens=20, logit_bias={end: 100}, logprobs=2)
    assert ("".join(ended), ended.scores, ended.finish_reason, ended.completion_tokens) == ("", [], "stop", 1)


def test_stop_tokens_end_a_text(model):
    whole = model.stream(PROMPT, max_tokens=12, logprobs=0)
    said, tokens = "".join(whole), [score.token for score in whole.scores]
    place = next(i for i in range(3, 12) if tokens[i] not in tokens[:i])
    text = model.stream(PROMPT, max_tokens=12, stop_token_ids=[tokens[place], 511])
    shorter = "".join(text)
    assert said.startswith(shorter)
    assert len(shorter) < len(said)
    assert (text.finish_reason, text.completion_tokens) == ("stop", place + 1)


def test_prompts_as_token_ids(model):
    ids = model.encode(PROMPT)
    assert model.generate(ids, max_tokens=12) == model.generate(PROMPT, max_tokens=12)
    assert model.generate(np.array(ids), max_tokens=12) == model.generate(PROMPT, max_tokens=12)
    np.testing.assert_array_equal(model.embed(ids), model.embed(PROMPT))
    for wrong, message in (
        ([], "the prompt has no tokens; give at least one character"),
        ([1, "a"], "a token id of the prompt 'a'; choose an integer of at least 0"),
        ([-1], "a token id of the prompt -1; choose 0 or more"),
    ):
        with pytest.raises(UsageError) as caught:
            model.generate(wrong)
        assert str(caught.value) == message


def test_16_seeds_at_once_give_what_each_gives_alone(model):
    options = {"max_tokens": 16, "temperature": 1.2, "min_p": 0.02, "presence_penalty": 0.5, "logprobs": 1}

    def text(seed):
        stream = model.stream(PROMPT, seed=seed, **options)
        return "".join(stream), [score.token for score in stream.scores]

    alone = [text(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, range(16))) == alone
    assert len({said for said, _ in alone}) > 8


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"min_p": 1.5}, "min_p 1.5; choose 0 (all tokens) to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty 0; choose above 0; 1 changes nothing"),
        ({"presence_penalty": 3}, "presence_penalty 3; choose -2 to 2; 0 changes nothing"),
        ({"frequency_penalty": "x"}, "frequency_penalty 'x'; choose -2 to 2; 0 changes nothing"),
        ({"logit_bias": {"a": 1}}, "a token id of logit_bias 'a'; choose an integer of at least 0"),
        ({"logit_bias": {1: 101}}, "logit_bias 101 of token 1; choose -100 to 100"),
        ({"logit_bias": [1]}, "logit_bias [1]; give a mapping from at most 1024 token ids to numbers"),
        ({"logprobs": 21}, "logprobs 21; choose 0 to 20, or None for no scores"),
        ({"stop_token_ids": [-1]}, "a stop token id -1; choose 0 or more"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar are given; a text follows one of them"),
    ],
    ids=str,
)
def test_options_out_of_range(model, option, message):
    with pytest.raises(UsageError) as caught:
        model.stream(PROMPT, **option)
    assert str(caught.value) == message


def test_a_greedy_choice_is_one_that_a_runtime_may_make_itself():
    assert Sampling().greedy
    assert Sampling(top_k=3, min_p=0.5).greedy
    for options in (
        {"temperature": 1.0},
        {"presence_penalty": 1.0},
        {"logit_bias": {1: 2.0}},
        {"repetition_penalty": 2},
    ):
        assert not Sampling(**options).greedy
    assert Sampling(**Sampling(logit_bias={1: 2}).options()) == Sampling(logit_bias={1: 2})
