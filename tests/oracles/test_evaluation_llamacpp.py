"""Perplexity and greedy text of a real model against llama.cpp, in float32."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import edgekit
from edgekit.evaluation import evaluate
from edgekit.runtime import NumpyRuntime

CONTEXT = 256


@pytest.fixture(scope="module", params=["stories", "sample"])
def model(request) -> tuple[Path, str]:
    """A trained model, and a text of its kind."""
    names = {"stories": ("stories", "stories_text"), "sample": ("sample_gguf", "sample_text")}[request.param]
    path, text = map(request.getfixturevalue, names)
    return path, text


@pytest.fixture(scope="module")
def llama(model):
    f32 = llama_cpp.GGML_TYPE_F32  # its cache of keys and values is float16 otherwise, which costs 1e-4
    options = {"n_ctx": CONTEXT, "n_batch": CONTEXT, "n_threads": 1, "logits_all": True, "verbose": False}
    found = llama_cpp.Llama(str(model[0]), type_k=f32, type_v=f32, flash_attn=False, **options)
    yield found
    found.close()


@pytest.fixture(scope="module")
def artifact(model):
    return edgekit.open(model[0])


@pytest.fixture(scope="module")
def text(model):
    return model[1]


def llamacpp_perplexity(llama, tokens):
    """The loop of llama.cpp's tools/perplexity: windows that do not overlap, BOS first, the second half scored."""
    losses = []
    for start in range(0, len(tokens) - CONTEXT + 1, CONTEXT):
        window = [llama.token_bos(), *tokens[start + 1 : start + CONTEXT]]
        llama.reset()
        llama.eval(window)
        logits = np.array(llama.scores[:CONTEXT], np.float64)
        scored = range(CONTEXT // 2, CONTEXT - 1)
        losses += [np.logaddexp.reduce(logits[p]) - logits[p, window[p + 1]] for p in scored]
    return np.exp(np.mean(losses)), len(losses)


def test_perplexity(llama, artifact, text):
    tokens = llama.tokenize(text[:8000].encode(), add_bos=True)
    assert tokens == artifact.tokenizer.encode(text[:8000])
    expected, count = llamacpp_perplexity(llama, tokens)
    found = evaluate(artifact, text[:8000], context=CONTEXT)
    assert found.tokens == count
    assert found.perplexity == pytest.approx(expected, rel=1e-6)  # measured: 2.5e-8


def test_logits_to_the_contexts_end(llama, artifact, text):
    tokens = llama.tokenize(text[:4000].encode(), add_bos=True)[:CONTEXT]
    llama.reset()
    llama.eval(tokens)
    expected = np.array(llama.scores[:CONTEXT])
    with NumpyRuntime.open(artifact) as model:
        assert np.abs(model.logits(tokens) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("prompt", ["Once upon a time", "Lily and Tom saw a big", 'The dog said: "'])
def test_greedy_text(llama, artifact, prompt):
    expected = llama.create_completion(prompt, max_tokens=80, temperature=0.0)["choices"][0]["text"]
    with NumpyRuntime.open(artifact) as model:
        assert model.generate(prompt, max_tokens=80) == expected
