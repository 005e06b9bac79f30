"""The mean KL divergence and its storage beside llama.cpp's ``llama-perplexity --kl-divergence-base``.

The tool is in no wheel. Its arithmetic is, from tools/perplexity/perplexity.cpp of the llama.cpp that llama-cpp-python
0.3.36 compiles, over logits that this llama.cpp computes: windows that do not overlap, BOS first, the second half
scored. The base's file has for each scored position two float32 (step and least log-probability) and a uint16 for each
token, from the largest logit down to 16 below it; tokens whose log-probability is at most -16 count for nothing.

The tool itself, built from these sources, on the sample model's held-out text (context 256, 8,128 positions) and the
decoded weights: 0.001731, 0.001151 and 0.015461 nats for Q4_0, Q4_K_M and Q2_K, where `evaluate` gives 0.0017317,
0.0011496 and 0.0154571. On the quantized files it gives 0.001767 for Q4_0 and 0.001257 for Q4_K_M: its kernels round
activations too, which `evaluate` leaves out, since it measures the weights.

Means agree, single positions need not: a code is off by up to half a step, so that the stored probabilities of a position
do not sum to 1, and what is missing or too much counts in full in its divergence.
"""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import edgekit
from edgekit.evaluation import Baseline, evaluate

CONTEXT = 256
CHARACTERS = 8_000
#: Bytes of the base's file before the windows' positions: ``_logits_``, and three int32.
HEAD = 8 + 3 * 4


@pytest.fixture(scope="module", params=["stories", "sample"])
def model(request) -> tuple[Path, str]:
    """A trained model in float32, and a text of its kind."""
    names = {"stories": ("stories", "stories_text"), "sample": ("sample_gguf", "sample_text")}[request.param]
    path, text = map(request.getfixturevalue, names)
    return path, text[:CHARACTERS]


def windows_of(llama: llama_cpp.Llama, text: str) -> np.ndarray:
    """Token ids [windows, context]."""
    tokens = llama.tokenize(text.encode(), add_bos=True)
    count = len(tokens) // CONTEXT
    windows = np.array(tokens[: count * CONTEXT]).reshape(count, CONTEXT)
    windows[:, 0] = llama.token_bos()
    return windows


def logits_of(path: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [windows, context], and llama.cpp's logits [windows, scored, vocab] in float32."""
    options = {"n_ctx": CONTEXT, "n_batch": CONTEXT, "n_threads": 1, "logits_all": True, "verbose": False}
    llama = llama_cpp.Llama(str(path), **options)
    windows, found = windows_of(llama, text), []
    for window in windows:
        llama.reset()
        llama.eval(window.tolist())
        found.append(np.array(llama.scores[CONTEXT // 2 : CONTEXT - 1], np.float32))
    llama.close()
    return windows, np.stack(found)


def stored(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the tool writes of logits [..., vocab]: step, least log-probability, and codes."""
    most = logits.max(axis=-1, keepdims=True)
    least = np.maximum(logits.min(axis=-1, keepdims=True), most - 16)
    total = np.log(np.exp(logits - most).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    step = (most - least) / np.float32(65535)
    codes = np.where(logits > least, np.rint((logits - least) / step), 0).astype(np.uint16)
    return step, least - most - total, codes


def tools_divergence(base: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The tool's KL divergence of each position, from the base's logits as it stores them."""
    step, least, codes = stored(base)
    log_p = (step * codes + least).astype(np.float64)
    log_q = logits - logits.max(axis=-1, keepdims=True)
    log_q = log_q - np.log(np.exp(log_q).sum(axis=-1, keepdims=True, dtype=np.float64))
    return np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0).sum(axis=-1)


@pytest.fixture(scope="module")
def base(model):
    """Token ids and llama.cpp's logits of the model in float32."""
    return logits_of(*model)


@pytest.mark.parametrize("recipe", ["Q4_0", "Q4_K_M", "Q2_K"])
def test_the_mean_is_llamacpps(model, base, recipe, tmp_path):
    """Of the same weights: llama.cpp computes with those that the artifact stands for, decoded to float32."""
    path, text = model
    small = edgekit.quantize(path, recipe, to=tmp_path / "small.gguf").path
    decoded = edgekit.convert(small, tmp_path / "decoded.gguf", dtype="F32").path
    _, logits = logits_of(decoded, text)
    theirs = tools_divergence(base[1], logits)
    ours = evaluate(small, text, baseline=path, context=CONTEXT)
    assert ours.tokens == theirs.size
    assert ours.kl_divergence == pytest.approx(theirs.mean(), rel=0.01)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_a_positions_difference_is_that_of_half_a_step(model, base, tmp_path):
    """Of the same logits. At 8 bits that is as much as the divergence itself, and negative at some positions."""
    path, text = model
    small = edgekit.quantize(path, "Q8_0", to=tmp_path / "small.gguf").path
    _, logits = logits_of(edgekit.convert(small, tmp_path / "decoded.gguf", dtype="F32").path, text)
    log_p, log_q = log_probabilities(base[1]), log_probabilities(logits)
    exact = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    theirs = tools_divergence(base[1], logits)
    # What p log(p / q) changes by if log p does by half a step, and by a few roundings of a float32 of at most 32.
    off = stored(base[1])[0] / 2 + 4 * 32 * 2.0**-24
    kept = log_p > -16 + off
    bound = (np.exp(log_p + off) * off * (1 + off + abs(log_p - log_q))).sum(axis=-1)
    bound += np.where(kept, 0, np.exp(log_p) * abs(log_p - log_q)).sum(axis=-1)
    assert np.all(abs(theirs - exact) <= bound)
    assert exact.min() > -1e-9 > theirs.min()


def test_the_baseline_takes_a_twentieth_of_the_file(smollm2, wikitext):
    """Hidden states in memory, no file; of a vocabulary of 49,152 at a width of 576."""
    baseline = Baseline(smollm2)
    config = baseline.config
    context = 64
    windows = np.array(edgekit.open(smollm2).tokenizer.encode(wikitext[:1000])[:context])[None]
    file = windows.size * 4 + len(windows) * (context - 1 - context // 2) * 2 * (2 * ((config.vocab + 1) // 2) + 4)
    assert baseline.hidden(windows).nbytes <= 0.05 * (HEAD + file)
