"""Several texts in one context of llama.cpp: computed together, with what each gives alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.errors import UsageError
from edgekit_llamacpp import sequences

PROMPT = "Once upon a time there was a little"
PAIR = {"type": "array", "prefixItems": [{"enum": ["cat", "dog"]}, {"type": "integer", "minimum": 0, "maximum": 99}]}
PAIR |= {"items": False, "minItems": 2}


@pytest.fixture(scope="module")
def small(sample_gguf, tmp_path_factory):
    """In Q8_0, whose rows llama.cpp computes one by one: so a row has the same bits in every batch."""
    return edgekit.quantize(sample_gguf, "Q8_0", to=tmp_path_factory.mktemp("sequences") / "small.gguf").path


def load(path: Any, **options: Any) -> Any:
    return edgekit.load(path, "llamacpp", **{"threads": 1, "context": 256, **options})


@pytest.fixture
def batches(monkeypatch):
    """The number of tokens of each batch that is computed."""
    counted: list[int] = []
    watch(monkeypatch, lambda batch: counted.append(batch.n_tokens))
    return counted


def watch(monkeypatch, look):
    """Look at each batch before it is computed."""
    compute = sequences.compute

    def looking(loaded, context, batch):
        look(batch)
        compute(loaded, context, batch)

    monkeypatch.setattr(sequences, "compute", looking)


@pytest.mark.parametrize("cache", ["F16", "F32"])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_16_seeds_at_once(small, count, cache):
    """Texts of all kinds: free, with scores, held to a schema, with a stop text.

    Scores agree as far as sums in another order do: which keys come first depends on which sequences there are.
    """
    scores: dict[int, list[list[float]]] = {}
    kinds = ({}, {"logprobs": 2}, {"json_schema": PAIR}, {"stop": ["e"]})

    def text(seed):
        options = {"max_tokens": 12, "temperature": 1.2, "min_p": 0.05, "seed": seed, **kinds[seed % 4]}
        stream = model.stream(PROMPT, **options)
        said = "".join(stream)
        scores.setdefault(seed, []).append([score.logprob for score in stream.scores])
        return said, stream.finish_reason, stream.completion_tokens

    pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
    with load(small, sequences=count, cache=cache) as model:
        alone = [text(seed) for seed in range(16)]
        assert {said[0] for said, *_ in alone[2::4]} == {"["}
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(text, range(16))) == alone
    for one, other in scores.values():
        assert one == pytest.approx(other, abs=2e-2)


def test_texts_that_wait_share_a_batch(small, batches, monkeypatch):
    """In the order of their sequences, whoever asked first: otherwise llama.cpp would compute them one by one."""
    orders: list[list[int]] = []
    watch(monkeypatch, lambda batch: orders.append([batch.seq_id[row][0] for row in range(batch.n_tokens)]))
    with load(small, sequences=8) as model:
        streams = [model.stream(PROMPT, max_tokens=8, temperature=1, seed=seed) for seed in range(8)]
        for stream in streams:
            next(stream)  # its prompt is computed
        batches.clear(), orders.clear()
        with ThreadPoolExecutor(8) as pool:
            with model._sequences.alone():
                asked = []
                for number, stream in enumerate(reversed(streams)):
                    asked.append(pool.submit(next, stream))
                    wait_for(lambda number=number: len(model._sequences._asks) == number + 1)
            [each.result() for each in asked]
    assert batches[0] == 8
    assert orders[0] == list(range(8))


@pytest.mark.parametrize(
    ("lengths", "first"), [((4, 10, 10, 6), [30]), ((100, 10, 6, 90), [100, 16, 90])], ids=["short", "long"]
)
def test_short_prompts_are_computed_together(small, batches, lengths, first):
    """Before the texts that wait, so that the next batches hold as many texts as there are; each text as alone."""

    def text(prompt):
        stream = model.stream(prompt, max_tokens=4, temperature=1.2, seed=prompt[0], logprobs=0)
        return "".join(stream), [score.logprob for score in stream.scores]

    with load(small) as model:
        ids = model.encode(PROMPT) * 20
        prompts = [[seed, *ids[: length - 1]] for seed, length in enumerate(lengths, 5)]
        alone = [text(prompt) for prompt in prompts]
    batches.clear()
    with load(small, sequences=4) as model, ThreadPoolExecutor(4) as pool:
        with model._sequences.alone():
            texts = []
            for number, prompt in enumerate(prompts, 1):
                texts.append(pool.submit(text, prompt))
                wait_for(lambda number=number: len(model._sequences._asks) == number)
        together = [each.result() for each in texts]
    assert batches[: len(first)] == first
    for (said, scores), (wanted, likely) in zip(together, alone, strict=True):
        assert said == wanted
        assert scores == pytest.approx(likely, abs=2e-2)


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come about")


def test_a_text_joins_while_another_goes_on(small, batches):
    """A long prompt has batches of its own, between those of the text that goes on."""
    with load(small, sequences=2, context=1024) as model:
        ids = model.encode("Lily and Tom")
        prompt = (model.encode(PROMPT) * 100)[:900]
        running = model.stream(ids, max_tokens=200)
        next(running)
        batches.clear()
        with ThreadPoolExecutor(1) as pool:
            joined = pool.submit(model.generate, prompt, max_tokens=1)
            list(running)
            joined.result()
    assert sum(batches) == len(prompt) + running.completion_tokens - 1
    assert {512, 388, 1} <= set(batches)


def test_what_another_text_has_is_not_computed_again(small, batches):
    """While the other goes on, and after it has ended."""
    with load(small, sequences=3) as model:
        ids = model.encode(PROMPT * 5)
        alone = model.generate([*ids, 50], max_tokens=4)
        batches.clear()
        first = model.stream([*ids, 60, 61], max_tokens=30)
        next(first)
        again = model.stream([*ids, 50], max_tokens=4)
        assert "".join(again) == alone
        assert max(batches) <= 2
        use = model.cache_use()
        first.close()
        model.generate([*ids, 50], max_tokens=1)
        assert (model.cache_use().reused - use.reused, model.cache_use().computed - use.computed) == (len(ids), 1)


def test_texts_that_end_or_are_dropped_give_their_sequence_back(small):
    with load(small, sequences=2) as model:
        wanted = model.generate(PROMPT, max_tokens=10)
        dropped = [model.stream(PROMPT, max_tokens=100) for _ in range(2)]
        for stream in dropped:
            next(stream)
        assert model.generate(PROMPT, max_tokens=10) == wanted, "one of those that nobody asks for makes room"
        for stream in dropped:
            stream.close()
        assert all(slot.text is None for slot in model._sequences._slots)
        assert model.generate(PROMPT, max_tokens=10) == wanted


def test_each_sequence_has_a_whole_context(small):
    with load(small, sequences=4, context=64) as model:
        assert model.context == 64
        assert model.description()["sequences"] == 4
        with ThreadPoolExecutor(4) as pool:
            streams = [model.stream([5 + seed] * 32, max_tokens=32, temperature=1, seed=seed) for seed in range(4)]
            list(pool.map("".join, streams))
        assert [stream.completion_tokens for stream in streams] == [32] * 4


def test_a_runtime_that_is_closed_ends_its_texts(small):
    model = load(small, sequences=2)
    streams = [model.stream(PROMPT, max_tokens=200) for _ in range(2)]
    ended: list[BaseException] = []

    def drain(stream):
        try:
            list(stream)
        except UsageError as error:
            ended.append(error)

    threads = [threading.Thread(target=drain, args=[stream]) for stream in streams]
    with model._sequences.alone():
        for thread in threads:
            thread.start()
        wait_for(lambda: len(model._sequences._asks) == 2)
    model.close()
    for thread in threads:
        thread.join()
    assert [str(error) for error in ended] == ["the runtime is closed; open the model again"] * 2


def test_other_work_between_texts(small):
    """Logits, embeddings and activations of the same model, while texts are computed."""
    with load(small, sequences=4) as model:
        ids = model.encode(PROMPT)
        wanted, vector = model.logits(ids), model.embed(ids)
        text = model.generate(PROMPT, max_tokens=30)
        with ThreadPoolExecutor(3) as pool:
            texts = [pool.submit(model.generate, PROMPT, max_tokens=30) for _ in range(2)]
            for _ in range(5):
                np.testing.assert_array_equal(model.logits(ids), wanted)
                np.testing.assert_array_equal(model.embed(ids), vector)
        assert [each.result() for each in texts] == [text, text]


def test_in_a_child_texts_keep_their_sequences(small):
    """They are computed one after the other there, and none loses what it has."""
    with load(small, sequences=4) as model, load(small, sequences=4, isolate=True) as child:
        wanted = [model.generate(PROMPT, max_tokens=12, temperature=1, seed=seed) for seed in range(4)]
        streams = [child.stream(PROMPT, max_tokens=12, temperature=1, seed=seed) for seed in range(4)]
        texts = [""] * 4
        for _ in range(14):
            for number, stream in enumerate(streams):
                texts[number] += next(stream, "")
    assert texts == wanted


@pytest.mark.parametrize("count", [0, 65, "2", 1.5])
def test_numbers_of_sequences(small, count):
    with pytest.raises(UsageError, match=r"sequences is .*; choose 1 to 64"):
        load(small, sequences=count)
