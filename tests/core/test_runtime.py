"""The numpy runtime: generation, sampling, stop texts, the context's end."""

from __future__ import annotations

import re

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.artifact import Artifact
from edgekit.errors import ContextOverflowError, MissingPluginError, NonFiniteError, UsageError
from edgekit.pipeline import open_artifact
from edgekit.runtime import (
    ChatRuntime,
    EmbeddingRuntime,
    Generation,
    NumpyRuntime,
    Sampling,
    TextRuntime,
    TokenizingRuntime,
    load,
    parse_option,
    until,
)
from edgekit.testing.models import artifact_of, random_model
from edgekit.tokenizer import Tokenizer
from edgekit.typing import F32, I64

CONFIG = config_from_hf(
    {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 256,
        "max_position_embeddings": 48,
    },
    "test",
)
MODEL = random_model(CONFIG)
PROMPT = [104, 101, 108, 108, 111]


@attrs.frozen(eq=False)
class Bytes(Tokenizer):
    """A token a byte: enough to go back and forth without a library, and to cut characters in two."""

    def encode(self, text, add_special=True):
        return list(text.encode()) + ([self.eos] if add_special and self.add_eos else [])

    def piece(self, number, skip_special=True):
        return bytes([number])

    def least_tokens(self, text, enough=None):
        return len(text.encode())


@attrs.frozen(eq=False)
class Script:
    """A model that says these bytes whatever it is asked."""

    says: bytes
    config = CONFIG

    def step(self, tokens, past):
        past.tokens = np.zeros((1, past.length + len(tokens)))
        logits = np.zeros(256, np.float32)
        logits[self.says[past.length - len(PROMPT)]] = 9
        return logits


@pytest.fixture
def artifact(tmp_path):
    return artifact_of(MODEL, tmp_path / "model", Bytes("bpe", (), (), eos=0))


def scripted(artifact, text):
    return NumpyRuntime(artifact, Script(text.encode() + bytes(1)))


def test_greedy_tokens_are_the_likeliest_of_the_full_pass(artifact):
    found = list(NumpyRuntime.open(artifact).tokens(PROMPT, max_tokens=20))
    whole = Transformer(MODEL).logits(PROMPT + found)
    assert found == whole.argmax(axis=1)[len(PROMPT) - 1 : -1].tolist()


def test_logits(artifact, rounding):
    expected = Transformer(MODEL).logits(PROMPT)
    with NumpyRuntime.open(artifact, cache=False) as model:
        np.testing.assert_allclose(model.logits(PROMPT), expected, rtol=0, atol=rounding(MODEL.config, expected))
    assert model.name == "numpy"


def test_text_comes_as_pieces_of_itself(artifact):
    with scripted(artifact, " wörld, grüße €€ 🦊!") as model:
        pieces = list(model.stream("hello"))
        assert model.generate("hello") == "".join(pieces) == " wörld, grüße €€ 🦊!"
    assert len(pieces) == len(" wörld, grüße €€ 🦊!"), "a piece for each whole character"


def test_a_text_may_end_in_the_replacement_character(artifact):
    """One that the model says is a character like any other; one that stands for half a character is the text's end."""
    assert scripted(artifact, " what\ufffd").generate("hello") == " what\ufffd"
    assert scripted(artifact, " 🦊").generate("hello", max_tokens=3) == " \ufffd"
    half = NumpyRuntime(artifact, Script(b" \xc3" + bytes(1)))
    assert list(half.stream("hello")) == [" ", "\ufffd"]
    assert half.generate("hello", stop=["\ufffd"]) == " "


def test_generation_ends(artifact):
    model = scripted(artifact, " once upon a time")
    assert model.generate("hello", max_tokens=6) == " once "
    assert model.generate("hello", max_tokens=0) == ""
    assert model.generate("hello", stop=["upon"]) == " once "
    assert model.generate("hello", stop=["a t", "n a", "zz"]) == " once upo"
    assert model.generate("hello", stop=["times"]) == " once upon a time"
    assert model.generate("hello", stop=[""]) == " once upon a time"


def test_tokens_are_counted_and_the_end_has_a_reason(artifact):
    model = scripted(artifact, " once upon")

    def told(**options):
        text = model.stream("hello", **options)
        said = "".join(text)
        return said, text.prompt_tokens, text.completion_tokens, text.finish_reason

    assert told() == (" once upon", 5, 11, "stop"), "the end token counts: it was computed"
    assert told(max_tokens=11) == (" once upon", 5, 11, "stop")
    assert told(max_tokens=10) == (" once upon", 5, 10, "length")
    assert told(max_tokens=0) == ("", 5, 0, "length")
    assert told(stop=["ce"]) == (" on", 5, 5, "stop")
    assert told(max_tokens=5, stop=["ce"]) == (" on", 5, 5, "stop")
    assert told(max_tokens=4, stop=["ce"]) == (" onc", 5, 4, "length"), "what was held back is given at the end"


def test_a_text_that_goes_on_has_no_reason_to_end(artifact):
    text = scripted(artifact, " once upon").stream("hello")
    assert (next(text), text.completion_tokens, text.finish_reason) == (" ", 1, None)
    text.close()
    assert list(text) == []


def test_a_text_may_be_cancelled_at_any_token():
    """Also while no piece comes: what may be the start of a stop text is held back."""

    def tokens():
        for number in range(100):
            if number == 3:
                text.cancel()
            yield number

    text = Generation.counting(1, tokens(), lambda new: until(("x" for _ in new), ["x" * 200]))
    assert list(text) == ["xxxx"]
    assert (text.completion_tokens, text.finish_reason) == (4, None)


def test_chat_is_the_template_and_then_the_text(artifact):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chatty = attrs.evolve(artifact, load_tokenizer=lambda: Bytes("bpe", (), (), eos=0, chat_template=template))
    model, messages = scripted(chatty, " there"), [{"role": "user", "content": "hello"}]
    assert model.prompt(messages) == "hello"
    assert model.chat(messages) == "".join(model.chat_stream(messages)) == " there"
    assert model.chat(messages, max_tokens=3, stop=["h"]) == " t"


def test_a_template_that_names_the_first_token_gets_no_second():
    artifact = open_artifact(sample.path())
    template = "{{ bos_token }}{{ messages[0].content }}"
    tokenizer = attrs.evolve(artifact.tokenizer, chat_template=template)
    model = NumpyRuntime.open(attrs.evolve(artifact, load_tokenizer=lambda: tokenizer))
    prompt = model.prompt([{"role": "user", "content": "Once upon"}])
    assert prompt == "<s>Once upon"
    assert model.encode(prompt, special=True) == model.encode("Once upon")
    assert model.encode("Once upon")[0] == tokenizer.bos
    assert model.chat_stream([{"role": "user", "content": "Once"}]).prompt_tokens == len(model.encode("Once"))


def test_embeddings_are_means_of_the_last_states(artifact, rounding):
    model = NumpyRuntime.open(artifact)
    states = Transformer(MODEL).hidden(PROMPT).astype(np.float64).mean(axis=0)
    got = model.embed("hello")
    assert (got.dtype, got.shape) == (np.float32, (32,))
    np.testing.assert_allclose(got, states / np.linalg.norm(states), rtol=0, atol=rounding(MODEL.config, states))
    with pytest.raises(ContextOverflowError):
        model.embed("x" * 49)
    with pytest.raises(UsageError, match="at least one"):
        model.embed("")


def test_what_it_can_do_is_declared(artifact):
    model = NumpyRuntime.open(artifact)
    assert isinstance(model, ChatRuntime)
    assert isinstance(model, EmbeddingRuntime)
    assert isinstance(model, TokenizingRuntime)
    assert not isinstance(Transformer(MODEL), ChatRuntime)


def test_a_prompt_is_not_ended(artifact):
    ending = attrs.evolve(artifact, load_tokenizer=lambda: Bytes("bpe", (), (), eos=0, add_eos=True))
    assert scripted(ending, " again").generate("hello") == " again"


def test_generation_fills_the_context_and_no_more(artifact):
    model = NumpyRuntime.open(attrs.evolve(artifact, load_tokenizer=lambda: Bytes("bpe", (), ())))
    assert len(list(model.tokens(PROMPT))) == 43
    assert len(list(model.tokens([1] * 48))) == 0
    assert len(list(model.tokens(PROMPT, max_tokens=43))) == 43


def test_what_does_not_fit_the_context(artifact):
    model = NumpyRuntime.open(artifact)
    with pytest.raises(ContextOverflowError) as caught:
        model.generate("hello", max_tokens=44)
    assert str(caught.value) == (
        "5 tokens of prompt and 44 more do not fit the model's context of 48; shorten the prompt, or ask for at most 43"
    )
    for call in (lambda: model.tokens([1] * 49), lambda: model.logits([1] * 49)):
        with pytest.raises(ContextOverflowError, match="49 tokens of prompt and 0 more do not fit"):
            call()
    with pytest.raises(ContextOverflowError, match=r"^at least 49 tokens of prompt do not fit .* shorten the prompt$"):
        model.stream("x" * 49)
    assert isinstance(caught.value, UsageError)


def test_sampling_is_seeded(artifact):
    model = NumpyRuntime.open(artifact)

    def sample(**options):
        return list(model.tokens(PROMPT, max_tokens=30, sampling=Sampling(**options)))

    assert sample(temperature=1.0, seed=1) == sample(temperature=1.0, seed=1)
    assert sample(temperature=1.0, seed=1) != sample(temperature=1.0, seed=2)
    greedy = sample()
    assert sample(temperature=1.0, top_k=1) == greedy
    assert sample(temperature=1.0, top_p=1e-9) == greedy
    assert sample(temperature=1e-300) == greedy
    assert sample(temperature=1.0) != greedy


SAMPLINGS = [
    {}, {"top_p": 0.95}, {"top_p": 0.5}, {"top_p": 0.3}, {"top_p": 0.05}, {"top_p": 0.01},
    {"top_k": 3}, {"top_k": 300}, {"top_k": 5, "top_p": 0.7},
    {"temperature": 0.4}, {"temperature": 3.0, "top_p": 0.9},
]  # fmt: skip


#: Fewer where there are more tokens, which take longer to draw from.
DRAWS = {7: 10_000, 600: 6_000, 2503: 2_000}


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
@pytest.mark.parametrize(("vocabulary", "spread"), [(7, 2), (600, 2), (2503, 2), (2503, 0)])
def test_sampling_follows_the_definition(options, vocabulary, spread):
    """Thousands of tokens; each count lies within five standard deviations of its binomial distribution."""
    logits = np.random.default_rng(vocabulary).standard_normal(vocabulary).astype(np.float32) * spread
    logits[1::3] = logits[0]  # ties
    sampling, draws = Sampling(**{"temperature": 1.0, "seed": 5, **options}), DRAWS[vocabulary]
    choose, expected = sampling.sampler(), sampling.probabilities(logits)
    counts = np.bincount([choose(logits) for _ in range(draws)], minlength=vocabulary)
    assert not counts[expected == 0].any(), "what is left out is never chosen"
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 5 * deviation + 1).all()


def test_a_sample_that_misleads_loses_no_token():
    """Two likely tokens among 100,000: a sample of them sees the first, which is not enough, or neither."""
    for first in (0, 1):
        logits = np.zeros(100_000, np.float32)
        logits[[first, 50_001]] = 20, 19.9
        choose = Sampling(temperature=1.0, seed=1, top_p=0.49).sampler()
        assert {choose(logits) for _ in range(20)} == {first}
        logits[[first, 50_001]] = 12, 11.9  # 42 and 38 %
        choose = Sampling(temperature=1.0, seed=1, top_p=0.49).sampler()
        assert {choose(logits) for _ in range(50)} == {first, 50_001}


@given(st.data())
def test_what_is_chosen_is_among_the_likely(data):
    values = st.sampled_from([-np.inf, -50.0, -1.0, 0.0, 0.5, 3.0])
    logits = np.array(data.draw(st.lists(values, min_size=1, max_size=700)), np.float32)
    logits[data.draw(st.integers(0, len(logits) - 1))] = 1.0
    options = {"top_k": data.draw(st.integers(0, 9)), "top_p": data.draw(st.sampled_from([1.0, 0.9, 0.3, 1e-6]))}
    sampling = Sampling(temperature=data.draw(st.sampled_from([1e-300, 0.3, 1.0, 1e300])), **options)
    assert sampling.probabilities(logits)[sampling.sampler()(logits)] > 0


def test_one_seed_gives_one_choice():
    logits = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    for options in ({}, {"top_p": 0.9}, {"top_k": 40}):
        one, other = (Sampling(temperature=1.0, seed=3, **options).sampler() for _ in range(2))
        assert [one(logits) for _ in range(20)] == [other(logits) for _ in range(20)]


@pytest.mark.parametrize("scores", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
def test_scores_that_are_not_finite(scores):
    with pytest.raises(NonFiniteError, match="the model computes scores that are not finite"):
        Sampling(temperature=1.0).sampler()(np.array(scores, np.float32))


def test_probabilities():
    logits = np.log(np.array([0.2, 0.4, 0.1, 0.3], np.float32))
    np.testing.assert_allclose(Sampling(1.0).probabilities(logits), [0.2, 0.4, 0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(Sampling(0.5).probabilities(logits), np.array([4, 16, 1, 9]) / 30, rtol=1e-6)
    np.testing.assert_allclose(Sampling(1.0, top_p=0.5).probabilities(logits), [0, 4 / 7, 0, 3 / 7], rtol=1e-6)
    np.testing.assert_allclose(Sampling(1.0, top_k=2).probabilities(logits), [0, 4 / 7, 0, 3 / 7], rtol=1e-6)
    np.testing.assert_allclose(Sampling(1.0, top_p=0.39).probabilities(logits), [0, 1, 0, 0])
    np.testing.assert_allclose(Sampling(2.0, top_p=0.01).probabilities(logits), [0, 1, 0, 0])


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_leaves_the_likeliest(top_k):
    logits = np.array([0.1, 3.0, 0.2, 2.0, 2.5], np.float32)
    choose = Sampling(temperature=50.0, top_k=top_k).sampler()
    assert {choose(logits) for _ in range(300)} == {1, 4, 3} if top_k == 3 else {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0; choose 0 or more"),
        ({"temperature": float("nan")}, "temperature nan; choose 0 or more"),
        ({"top_k": -1}, "top_k -1; choose 0 (all tokens) or more"),
        ({"top_p": 0.0}, "top_p 0.0; choose above 0 and at most 1"),
        ({"max_tokens": -1}, "max_tokens -1; choose 0 or more"),
    ],
)
def test_bad_options(artifact, options, message):
    with pytest.raises(UsageError) as caught:
        NumpyRuntime.open(artifact).generate("hello", **options)
    assert str(caught.value) == message


def test_an_empty_prompt_is_refused(artifact):
    with pytest.raises(UsageError, match="at least one"):
        NumpyRuntime.open(artifact).generate("")


def test_text_needs_a_tokenizer(artifact):
    with pytest.raises(UsageError, match="it has no tokenizer, so it takes no text; write it again from a source"):
        NumpyRuntime.open(attrs.evolve(artifact, load_tokenizer=lambda: None)).generate("hello")


def test_a_closed_runtime_says_so(artifact):
    with NumpyRuntime.open(artifact) as model:
        pass
    with pytest.raises(UsageError, match="the runtime is closed; open the model again"):
        model.logits(PROMPT)


def test_load_picks_a_runtime(artifact):
    with load(artifact, cache=False) as model:
        assert isinstance(model, NumpyRuntime)
    with load(artifact, "numpy") as model:
        assert model.generate("hello", max_tokens=3) == NumpyRuntime.open(artifact).generate("hello", max_tokens=3)
    with pytest.raises(MissingPluginError, match="no runtime 'warp' is installed"):
        load(artifact, "warp")


@given(st.text("abc", max_size=20), st.lists(st.text("abc", max_size=3), max_size=3), st.integers(1, 5))
def test_pieces_up_to_a_stop_text(text, stop, step):
    """However the text grows: the pieces join to what lies before the first stop text, and hold none of it."""
    pieces = list(until((text[start : start + step] for start in range(0, len(text), step)), stop))
    ends = [text.find(s) for s in stop if s and s in text]
    assert all(pieces)
    if step == 1 or not ends:
        expected = _first_to_complete(text, stop)
        assert "".join(pieces) == text[:expected]
    assert text.startswith("".join(pieces))
    assert not any(s and s in "".join(pieces) for s in stop)


def _first_to_complete(text, stop):
    """Where the stop text begins that is complete first; the end without one."""
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s and s in text]
    if not found:
        return len(text)
    complete = min(end for end, _ in found)
    return min(start for end, start in found if end == complete)


@pytest.mark.parametrize("stop", ["b", ["b"], ("b", "zz"), {"b"}, iter(["b"])], ids=lambda stop: type(stop).__name__)
def test_a_stop_text_may_be_alone_or_one_of_many(artifact, stop):
    assert scripted(artifact, "aabcc").generate("hello", max_tokens=6, stop=stop) == "aa"


def test_a_stop_text_of_several_letters_is_one(artifact):
    assert scripted(artifact, "xay stop z").generate("hello", max_tokens=11, stop="stop") == "xay "


@pytest.mark.parametrize("stop", [None, (), []])
def test_no_stop_text_stops_nothing(artifact, stop):
    assert scripted(artifact, "aabcc").generate("hello", max_tokens=6, stop=stop) == "aabcc"


NOT_UNDERSTOOD = {
    "a stop that is a number": ({"stop": 5}, "stop 5; give a text, several, or None"),
    "stop texts that are bytes": ({"stop": b"a"}, "stop b'a'; give a text, several, or None"),
    "stop texts that are numbers": ({"stop": ["a", 5]}, "stop text 5 is int; a stop text is a string"),
    "a seed below -1": ({"seed": -2}, "seed -2; choose -1 or more"),
    "a seed that is a text": ({"seed": "7"}, "seed '7'; choose an integer of at least -1"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens 1.5; choose an integer of at least 0"),
    "less than no token": ({"max_tokens": -1}, "max_tokens -1; choose 0 or more"),
    "a temperature that is a text": ({"temperature": "hot"}, "temperature 'hot'; choose 0 or more"),
    "half of a top_k": ({"top_k": 1.5}, "top_k 1.5; choose 0 (all tokens) or more"),
    "no top_p": ({"top_p": None}, "top_p None; choose above 0 and at most 1"),
}


@pytest.mark.parametrize("what", NOT_UNDERSTOOD)
def test_arguments_are_refused_with_what_is_allowed(artifact, what):
    options, message = NOT_UNDERSTOOD[what]
    with NumpyRuntime.open(artifact) as model:
        for ask in (model.generate, model.stream):
            with pytest.raises(UsageError) as raised:
                ask("hello", **options)
            assert str(raised.value) == message


def test_a_prompt_that_is_no_text_is_refused(artifact):
    message = r"^prompt b'a' is bytes; give a text, or token ids$"
    with NumpyRuntime.open(artifact) as model, pytest.raises(UsageError, match=message):
        model.generate(b"a")


def test_seed_minus_one_draws_a_seed_that_repeats_the_text(artifact):
    drawn = [Sampling(1.0, seed=-1).seed for _ in range(4)]
    assert len(set(drawn)) > 1
    assert all(seed >= 0 for seed in drawn)
    logits = np.zeros(256, np.float32)
    one, same = (Sampling(1.0, seed=drawn[0]).sampler() for _ in range(2))
    assert [one(logits) for _ in range(9)] == [same(logits) for _ in range(9)]


def test_numpy_integers_are_integers(artifact):
    assert scripted(artifact, "ab").generate("hello", max_tokens=np.int64(1), seed=np.int32(3)) == "a"


def test_an_option_that_a_runtime_lacks_is_refused():
    with pytest.raises(UsageError, match=r"^runtime 'numpy' has no option 'gpu_layers'; it has cache$"):
        load(sample.path(), runtime="numpy", gpu_layers=3)


def test_a_runtime_without_options_says_so():
    pytest.importorskip("edgekit_example")
    with pytest.raises(UsageError, match=r"^runtime 'example' has no option 'cache', 'x'; it has none$"):
        load(sample.path(), runtime="example", cache=True, x=1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("context=2048", ("context", 2048)),
        ("mmap=false", ("mmap", False)),
        ("device=GPU.1", ("device", "GPU.1")),
        ('lora=["a", "b"]', ("lora", ["a", "b"])),
        ("name=a=b", ("name", "a=b")),
    ],
)
def test_options_of_a_command_line(text, found):
    assert parse_option(text) == found


@pytest.mark.parametrize("text", ["context", "=3", "a b=3", "context="])
def test_options_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match=r"^--option '.*'; give NAME=VALUE, such as context=2048$"):
        parse_option(text)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens have to be integers [n] or [batch, n], at least one; got float64 (0,)"),
        ([0.5], "tokens have to be integers [n] or [batch, n], at least one; got float64 (1,)"),
        ([3, 5], "tokens lie between 3 and 5, the vocabulary has 0 to 4; use the model's own tokenizer"),
        ([[1, 2]], "a prompt is one sequence of token ids [n]; got [1, 2]"),
    ],
)
def test_ids_that_are_no_prompt(tokens, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        TextRuntime().checked_ids(tokens, 5)


def test_ids_of_a_prompt_and_of_a_batch():
    for tokens in ([4, 0], [[4], [0]]):
        ids = TextRuntime().checked_ids(np.array(tokens, np.uint8), 5, batch=True)
        assert ids.dtype == np.int64
        assert ids.tolist() == tokens


class Counting(TextRuntime):
    """Predicts the next number of 0 to 3; says no more than what it computes."""

    def __init__(self, artifact: Artifact, most_context: int | None = None) -> None:
        self.artifact, self.most_context, self.closed = artifact, most_context, 0

    def longest(self) -> int:
        return 8

    def vocabulary(self) -> int:
        return 4

    def after(self, ids: list[int]) -> F32:
        return self.rows(np.array([ids]))[0, -1]

    def rows(self, ids: I64) -> F32:
        return np.eye(4, dtype=np.float32)[(ids + 1) % 4]

    def close(self) -> None:
        self.closed += 1


def test_a_runtime_of_four_methods() -> None:
    artifact = open_artifact(sample.path())
    with Counting(artifact) as runtime:
        assert runtime.context == 8
        assert list(runtime.tokens([1, 2])) == [3, 0, 1, 2, 3, 0]
        assert list(runtime.tokens([1], max_tokens=2)) == [2, 3]
        assert runtime.logits([0, 3]).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
        assert runtime.logits([[0], [3], [1]]).shape == (3, 1, 4)
        assert not runtime.closed
    assert runtime.closed == 1
    limited = Counting(artifact, 4)
    assert (limited.context, Counting(artifact, 100).context) == (4, 8)
    for wrong in ([], [4], [-1], [0.5]):
        with pytest.raises(UsageError):
            limited.tokens(wrong)
        with pytest.raises(UsageError):
            limited.logits(wrong)
    with pytest.raises(UsageError, match=r"one sequence of token ids \[n\]"):
        limited.tokens([[0]])  # type: ignore[list-item]
    for refused in (lambda: limited.tokens([0, 1], max_tokens=3), lambda: limited.logits([0] * 5)):
        with pytest.raises(ContextOverflowError):
            refused()
