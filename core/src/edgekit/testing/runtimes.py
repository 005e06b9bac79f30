"""Checks for runtimes: logits equal to the numpy forward pass's, and text that does not depend on how it is requested.

A runtime is given by a callable: ``start(artifact, **options)`` returns an `edgekit.runtime.Runtime`. The checks use
small models with random weights, in a format that the runtime supports.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact, Format
from edgekit.errors import ContextOverflowError, EdgekitError, UsageError
from edgekit.plugin._registry import Registration, manager
from edgekit.runtime.chat import prompt_of
from edgekit.runtime.protocols import ChatRuntime, EmbeddingRuntime, Generation, NumpyRuntime, Runtime, start
from edgekit.testing._kit import Kit, NotApplicable, Profile, Result, fail
from edgekit.testing._tokenizers import bpe, bpe_with_bos
from edgekit.testing._trips import random_artifact, small_config, write
from edgekit.typing import F32

#: Default tolerance: the largest difference of a logit, in standard deviations of the logits.
TOLERANCE = 1e-3
PROMPT = "the thing"


@attrs.frozen(eq=False)
class RuntimeSubject:
    """A runtime with the formats that it supports.

    Attributes:
        start: called with an artifact; returns a runtime.
        formats: names of formats; ``"*"`` for all.
        tolerance: largest difference of logits from the numpy forward pass, in standard deviations of the logits.
        name: its name in messages.
    """

    start: Callable[..., Runtime]
    formats: tuple[str, ...]
    tolerance: float
    name: str

    @property
    def label(self) -> str:
        """The runtime's name, for messages."""
        return f"runtime {self.name!r}"


KIT: Kit[RuntimeSubject] = Kit("runtimes")


def adapt(
    runtime: Any, formats: Iterable[str] | None = None, tolerance: float | None = None, name: str = ""
) -> RuntimeSubject:
    """Return the subject for a callable, a registration, or the name of an installed runtime.

    Raises:
        UsageError: the object is not callable.
    """
    if isinstance(runtime, str):
        runtime = manager().find("runtimes", runtime)
    options: Mapping[str, Any] = {}
    if isinstance(runtime, Registration):
        name, options, runtime = runtime.name, runtime.options, runtime.load()
    if not callable(runtime):
        raise UsageError(f"{type(runtime).__name__} is not a runtime: it must be callable with an artifact")
    chosen = tuple(formats or options.get("formats", ("*",)))
    allowed = tolerance or options.get("tolerance") or getattr(runtime, "tolerance", None) or TOLERANCE
    return RuntimeSubject(runtime, chosen, float(allowed), name or getattr(runtime, "__name__", "runtime"))


def run_runtime_checks(
    runtime: Any,
    *,
    formats: Iterable[str] | None = None,
    tolerance: float | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check on a runtime, without pytest.

    Args:
        runtime: a callable that opens an artifact, or the name of an installed runtime.
        formats: names of the formats that it supports; None for all.
        tolerance: largest difference of logits, in standard deviations of the logits; None for `TOLERANCE`.
        expected_failures: the reason for each check that is expected to fail, by name.
        checks: names of the checks to run; None for all.
        profile: ``quick``, ``default`` or ``deep``; None takes that of EDGEKIT_TEST_PROFILE.
    """
    subject = adapt(runtime, formats, tolerance)
    return KIT.run(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


def runtime_checks(
    runtime: Any,
    *,
    formats: Iterable[str] | None = None,
    tolerance: float | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a pytest decorator that calls the test once per check, passed as the argument ``check``."""
    subject = adapt(runtime, formats, tolerance)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


@contextmanager
def loaded(
    subject: RuntimeSubject, config: ModelConfig | None = None, seed: int = 0, bos: bool = False
) -> Iterator[_Loaded]:
    """Yield a small model loaded by the runtime, with the numpy forward pass of the same weights."""
    name = "hf" if "*" in subject.formats else subject.formats[0]
    artifact = _on_disk(name, config or model_config(), seed, bos)
    judge = random_artifact(Path(), config or model_config(), seed)
    with start(subject.start, subject.name, artifact) as runtime:
        yield _Loaded(runtime, artifact, Transformer(judge.model))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgekit-check-")


@cache
def _on_disk(name: str, config: ModelConfig, seed: int, bos: bool = False) -> Artifact:
    """Return the model as an artifact of a format; it is written once per process."""
    registration = manager().find("formats", name)
    chosen: Format = registration.load()
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    path = folder / f"model{next(iter(registration.options.get('suffixes', ())), '')}"
    write(chosen, path, random_artifact(folder, config, seed, bpe_with_bos() if bos else bpe()))
    return chosen.open(path)


@attrs.frozen(eq=False)
class _Loaded:
    runtime: Runtime
    artifact: Artifact
    judge: Transformer


def model_config(**changes: Any) -> ModelConfig:
    """Return the configuration of a two-layer model with a byte-level vocabulary and shared key and value heads."""
    return small_config(**{"layers": 2, "vocab": len(bpe().tokens), "context": 48, **changes})


def _text_needs_library() -> None:
    if find_spec("tokenizers") is None:
        raise NotApplicable("cutting text into tokens needs the tokenizers library; pip install 'edgekit-core[text]'")


def _tokens(count: int, vocab: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.RandomState(seed).randint(0, vocab, count).tolist()
    return ids


@KIT.check
def check_logits(subject: RuntimeSubject, profile: Profile) -> None:
    """The logits of every position agree with the numpy forward pass within the stated tolerance."""
    variants: list[dict[str, Any]] = [{}, {"kv_heads": 1, "rope_theta": 500.0}, {"kv_heads": 4, "ffn": 96}]
    for number, changes in enumerate(variants[: 2 if profile.name == "quick" else None]):
        with loaded(subject, model_config(**changes), number) as model:
            vocab = model.judge.config.vocab
            for count in (1, 2, 17, 48):
                tokens = _tokens(count, vocab, count)
                _close(subject, model.runtime.logits(tokens), model.judge.logits(tokens), f"{count} tokens")


def _close(subject: RuntimeSubject, got: Any, want: F32, what: str) -> None:
    if np.shape(got) != want.shape:
        fail(f"{what}: logits of shape {np.shape(got)}; {want.shape} [tokens, vocabulary] is expected")
    if np.asarray(got).dtype != np.float32:
        fail(f"{what}: logits are {np.asarray(got).dtype}; float32 is expected")
    error = np.abs(np.asarray(got, np.float64) - want).max(axis=1) / want.std()
    if not (error <= subject.tolerance).all():  # NaN exceeds every tolerance
        at = int(np.argmax(~(error <= subject.tolerance)))
        hint = "; the first token is right: look at positions (rotary pairs, mask)" if at > 0 else ""
        fail(
            f"{what}: at position {at} a logit is off by {error[at]:.2g} standard deviations, "
            f"{subject.tolerance:g} are stated{hint}"
        )


@KIT.check
def check_no_state(subject: RuntimeSubject, profile: Profile) -> None:
    """Logits do not depend on earlier calls."""
    with loaded(subject) as model:
        tokens, others = _tokens(9, model.judge.config.vocab, 1), _tokens(21, model.judge.config.vocab, 2)
        first = np.array(model.runtime.logits(tokens))
        model.runtime.logits(others)
        again = np.array(model.runtime.logits(tokens))
        if first.shape != again.shape or first.tobytes() != again.tobytes():
            fail("the same tokens get other logits after another question: a cache is not emptied")


@KIT.check
def check_causal(subject: RuntimeSubject, profile: Profile) -> None:
    """Later tokens do not change earlier logits: the logits of a prefix are the prefix of the logits."""
    with loaded(subject) as model:
        tokens = _tokens(20, model.judge.config.vocab, 3)
        whole = np.asarray(model.runtime.logits(tokens))
        for count in (1, 7, 19):
            alone = np.asarray(model.runtime.logits(tokens[:count]))
            error = np.abs(alone - whole[:count]).max() / whole.std()
            if not error <= subject.tolerance:
                fail(f"the first {count} of 20 tokens get other logits on their own, off by {error:.2g} deviations")


@KIT.check
def check_batch(subject: RuntimeSubject, profile: Profile) -> None:
    """In a batch [n, tokens], if supported, every row gets the same logits as alone."""
    with loaded(subject) as model:
        vocab = model.judge.config.vocab
        batch = np.array([_tokens(8, vocab, seed) for seed in range(3)])
        try:
            together = np.asarray(model.runtime.logits(batch))
        except (EdgekitError, ValueError, TypeError):
            raise NotApplicable("it takes one sequence at a time") from None
        alone = np.array([model.runtime.logits(row) for row in batch])
        if together.shape != alone.shape:
            fail(f"a batch gives logits of shape {together.shape}; {alone.shape} is expected")
        error = np.abs(together - alone).max() / alone.std()
        if not error <= subject.tolerance:
            fail(f"in a batch the logits are off by {error:.2g} standard deviations from those alone")


@KIT.check
def check_greedy(subject: RuntimeSubject, profile: Profile) -> None:
    """At temperature 0 the same prompt gives the same text, with the most likely token at every step."""
    _text_needs_library()
    with loaded(subject) as model:
        texts = [model.runtime.generate(PROMPT, max_tokens=12) for _ in range(3)]
        if len(set(texts)) > 1:
            fail(f"greedy text differs from call to call: {texts[0]!r}, {texts[1]!r}, {texts[2]!r}")
        _likeliest(model, subject.tolerance)


@KIT.check
def check_beginning(subject: RuntimeSubject, profile: Profile) -> None:
    """If the tokenizer adds a BOS before a text, the runtime does so exactly once.

    Tested with the greedy text of a model whose tokenizer adds one. Typical faults: BOS is missing, or is added twice,
    by the tokenizer and by the runtime; the loss of quality is easily overlooked.
    """
    _text_needs_library()
    with loaded(subject, model_config(vocab=len(bpe_with_bos().tokens)), bos=True) as model:
        _likeliest(model, subject.tolerance)


def _likeliest(model: _Loaded, tolerance: float) -> None:
    """Compare greedy text with numpy's, as long as the most likely token leads by more than the tolerance."""
    count = _clear_steps(model, 12, tolerance)
    with NumpyRuntime.open(model.artifact) as judge:
        expected = judge.generate(PROMPT, max_tokens=count)
    actual = model.runtime.generate(PROMPT, max_tokens=count)
    # Random models may end in the middle of a character: some runtimes omit its bytes, others show U+FFFD.
    if actual.rstrip("\ufffd") != expected.rstrip("\ufffd"):
        fail(f"greedy text is {actual!r}; the likeliest {count} tokens are {expected!r}")


def _clear_steps(model: _Loaded, count: int, tolerance: float) -> int:
    """Return the number of first tokens at which the most likely one leads by more than the tolerance."""
    tokenizer = model.artifact.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(PROMPT)
    for step in range(count):
        logits = model.judge.logits(ids)[-1]
        second, first = np.partition(logits, -2)[-2:]
        if first - second <= 4 * tolerance * logits.std():
            return step
        ids.append(int(logits.argmax()))
    return count


@KIT.check
def check_streaming(subject: RuntimeSubject, profile: Profile) -> None:
    """The joined pieces of `stream` are the text of `generate`."""
    _text_needs_library()
    with loaded(subject) as model:
        for options in ({}, {"stop": ("e",)}, {"temperature": 1.0, "seed": 3}):
            whole = model.runtime.generate(PROMPT, max_tokens=16, **options)
            pieces = "".join(model.runtime.stream(PROMPT, max_tokens=16, **options))
            if whole != pieces:
                fail(f"streamed it is {pieces!r}, at once {whole!r} ({options or 'greedy'})")


@KIT.check
def check_counts(subject: RuntimeSubject, profile: Profile) -> None:
    """`stream` counts the tokens of prompt and answer, and has a finish reason only after the text has ended."""
    _text_needs_library()
    with loaded(subject) as model:
        tokenizer = model.artifact.tokenizer
        assert tokenizer is not None
        text: Any = model.runtime.stream(PROMPT, max_tokens=5)
        if not isinstance(text, Generation):
            fail(f"`stream` gives {type(text).__name__}; an edgekit.runtime.Generation is expected")
        for _ in text:
            pass
        expected = len(tokenizer.encode(PROMPT))
        if text.prompt_tokens != expected:
            fail(f"{PROMPT!r} is said to have {text.prompt_tokens} tokens; the tokenizer makes {expected}")
        if not 0 <= text.completion_tokens <= 5 or (text.completion_tokens < 5) != (text.finish_reason == "stop"):
            fail(f"of max_tokens=5 it says {text.completion_tokens} tokens and {text.finish_reason!r}")
        none: Any = model.runtime.stream(PROMPT, max_tokens=0)
        if list(none) or none.completion_tokens != 0 or none.finish_reason != "length":
            fail(
                f"of max_tokens=0 it says {none.completion_tokens} tokens, {none.finish_reason!r}; 'length' is expected"
            )


@KIT.check
def check_chat(subject: RuntimeSubject, profile: Profile) -> None:
    """Chat, if supported, uses the model's template, and gives the same text as `generate` for the rendered prompt."""
    _text_needs_library()
    with loaded(subject) as model:
        runtime: Any = model.runtime
        if not isinstance(runtime, ChatRuntime):
            raise NotApplicable("it has no chat")
        if find_spec("jinja2") is None:
            raise NotApplicable("rendering a chat template needs jinja2; pip install 'edgekit-core[chat]'")
        messages = [{"role": "user", "content": PROMPT}]
        expected, prompt = prompt_of(model.artifact, messages), runtime.prompt(messages)
        if prompt != expected:
            fail(f"the prompt is {prompt!r}; the model's template makes {expected!r}")
        answer, pieces = runtime.chat(messages, max_tokens=8), runtime.chat_stream(messages, max_tokens=8)
        if answer != "".join(pieces) or answer != model.runtime.generate(expected, max_tokens=8):
            fail(f"the answer is {answer!r}; `chat_stream`, or `generate` with the template's prompt, say otherwise")
        _refused(partial(runtime.chat, []), "no messages", UsageError)
        if runtime.prompt(PROMPT) != expected:
            fail(f"a text alone becomes {runtime.prompt(PROMPT)!r}; as one message of the user it is {expected!r}")


@KIT.check
def check_embedding(subject: RuntimeSubject, profile: Profile) -> None:
    """Embeddings, if supported, are float32 [width], of length 1, and agree with numpy; an empty text is refused."""
    _text_needs_library()
    with loaded(subject) as model:
        runtime: Any = model.runtime
        if not isinstance(runtime, EmbeddingRuntime):
            raise NotApplicable("it has no embed")
        one, same, other = (np.asarray(runtime.embed(text)) for text in (PROMPT, PROMPT, "another text"))
        if one.dtype != np.float32 or one.shape != (model.judge.config.width,):
            fail(f"a vector is {one.dtype} {one.shape}; float32 [{model.judge.config.width}] is expected")
        if not abs(float(np.linalg.norm(one.astype(np.float64))) - 1) < 1e-4:
            fail(f"a vector has the length {np.linalg.norm(one)}; 1 is expected")
        if one.tobytes() != same.tobytes() or one.tobytes() == other.tobytes():
            fail("the same text gets another vector, or another text the same")
        tokens = _tokens(17, model.judge.config.vocab, 4)
        expected = model.judge.embedding(tokens)
        off = np.abs(np.asarray(runtime.embed(tokens)) - expected / np.linalg.norm(expected)).max()
        if not off <= subject.tolerance:  # a vector of length 1 has no larger scale
            fail(f"the vector of 17 token ids is off by {off:.2g} from the numpy forward pass's")
        _refused(partial(runtime.embed, ""), "an empty text", EdgekitError)


@KIT.check
def check_sampling(subject: RuntimeSubject, profile: Profile) -> None:
    """The same seed gives the same text, some other seed another text, and `max_tokens` 0 an empty one."""
    _text_needs_library()
    with loaded(subject) as model:
        ask = model.runtime.generate
        if ask(PROMPT, max_tokens=12, temperature=1.5, seed=5) != ask(PROMPT, max_tokens=12, temperature=1.5, seed=5):
            fail("with the same seed the text differs")
        texts = {ask(PROMPT, max_tokens=12, temperature=1.5, seed=seed) for seed in range(6)}
        if len(texts) == 1:
            fail("six seeds at temperature 1.5 give one text: the seed or the temperature is not used")
        if ask(PROMPT, max_tokens=0) != "":
            fail("max_tokens=0 gives text")


#: Options with which only the most likely token can be sampled.
_CERTAIN: tuple[dict[str, Any], ...] = (
    {"temperature": 1.5, "top_k": 1}, {"temperature": 1.5, "top_p": 1e-6}, {"temperature": 1e-5},
)  # fmt: skip


@KIT.check
def check_certain(subject: RuntimeSubject, profile: Profile) -> None:
    """Options that leave only the most likely token (`top_k` 1, a tiny `top_p` or temperature) give the greedy text.

    Typical faults: an option that is accepted but not used, logits multiplied by the temperature instead of divided.
    """
    _text_needs_library()
    with loaded(subject) as model:
        count = _clear_steps(model, 8, subject.tolerance)
        expected = model.runtime.generate(PROMPT, max_tokens=count)
        for options in _CERTAIN:
            actual = model.runtime.generate(PROMPT, max_tokens=count, seed=3, **options)
            if actual != expected:
                fail(f"with {options} the text is {actual!r}; only {expected!r} is likely enough")


@KIT.check
def check_stop(subject: RuntimeSubject, profile: Profile) -> None:
    """A stop text ends the answer and is not part of it."""
    _text_needs_library()
    with loaded(subject) as model:
        text = _text_to_stop(model)
        stop = text[2:4]
        expected, stopped = text[: text.find(stop)], model.runtime.generate(PROMPT, max_tokens=16, stop=(stop,))
        if stopped != expected:
            fail(f"stopped at {stop!r} it gives {stopped!r}; {expected!r} is expected")


def _text_to_stop(model: _Loaded) -> str:
    text = model.runtime.generate(PROMPT, max_tokens=16)
    if len(text) < 4:
        raise NotApplicable("this random model says too little to be stopped")
    return text


@KIT.check
def check_unknown_tokens(subject: RuntimeSubject, profile: Profile) -> None:
    """Ids outside the vocabulary and empty prompts are refused with a typed error."""
    with loaded(subject) as model:
        vocab = model.judge.config.vocab
        for tokens in ([0, vocab], [-1, 0], [2**31], []):
            _refused(partial(model.runtime.logits, tokens), f"tokens {tokens}", EdgekitError)


@KIT.check
def check_unknown_options(subject: RuntimeSubject, profile: Profile) -> None:
    """An unknown option is refused with a `UsageError` that names it; it is never ignored.

    Typical fault: a function takes ``**options`` and uses only the known ones. Such a function must call
    `edgekit.runtime.refuse_unknown_options`.
    """
    artifact = _on_disk("hf" if "*" in subject.formats else subject.formats[0], model_config(), 0)
    option = "no_such_option"

    def ask() -> None:
        start(subject.start, subject.name, artifact, **{option: 1}).close()

    message = _refused(ask, f"the option {option!r}", UsageError)
    if option not in message:
        fail(f"the option {option!r}: the error says {message!r}; it must name the option")


@KIT.check
def check_stop_alone(subject: RuntimeSubject, profile: Profile) -> None:
    """A single stop text is accepted: ``stop="word"`` ends at the word, not at its letters; None means no stop text."""
    _text_needs_library()
    with loaded(subject) as model:
        text = _text_to_stop(model)
        # The second stop text does not occur, but its letters do.
        for stop in (text[2:4], text[2] + chr(0x10FFFF)):
            alone, listed = (model.runtime.generate(PROMPT, max_tokens=16, stop=s) for s in (stop, [stop]))
            if alone != listed:
                fail(f"stop={stop!r} gives {alone!r}, stop={[stop]!r} gives {listed!r}; both are one stop text")
        if (unstopped := model.runtime.generate(PROMPT, max_tokens=16, stop=None)) != text:
            fail(f"stop=None gives {unstopped!r}; without stop texts it is {text!r}")


@KIT.check
def check_context_overflow(subject: RuntimeSubject, profile: Profile) -> None:
    """A prompt longer than the context is refused with `ContextOverflowError`, not truncated."""
    with loaded(subject) as model:
        context, vocab = model.judge.config.context, model.judge.config.vocab
        too_many = _tokens(context + 1, vocab)
        _refused(partial(model.runtime.logits, too_many), f"{context + 1} tokens", ContextOverflowError)
        if find_spec("tokenizers") is not None:
            asked = "a" * (2 * context)
            generate = partial(model.runtime.generate, asked, max_tokens=1)
            _refused(generate, "a long prompt", ContextOverflowError)


def _refused(ask: Callable[[], Any], what: str, expected: type[EdgekitError]) -> str:
    try:
        ask()
    except expected as error:
        return str(error)
    except Exception as error:
        fail(f"{what}: raises {type(error).__name__}: {error}; {expected.__name__} is expected")
    fail(f"{what}: no error is raised; {expected.__name__} is expected")


@KIT.check
def check_any_text(subject: RuntimeSubject, profile: Profile) -> None:
    """Any Unicode text is accepted as a prompt: other scripts, emoji, control characters."""
    _text_needs_library()
    with loaded(subject) as model:
        for prompt in ("é", "日本", "👩‍🚀", "\x00\t\n", "<|end|>"):
            generated: Any = model.runtime.generate(prompt, max_tokens=2)
            if not isinstance(generated, str):
                fail(f"the prompt {prompt!r} gives {type(generated).__name__}; text is expected")


@KIT.check
def check_close(subject: RuntimeSubject, profile: Profile) -> None:
    """`close` may be called twice; later calls are refused with a typed error, and files are released."""
    with loaded(subject) as model:
        model.runtime.close()
        model.runtime.close()
        _refused(partial(model.runtime.logits, [0]), "a closed runtime", EdgekitError)


__all__ = ["KIT", "TOLERANCE", "RuntimeSubject", "adapt", "run_runtime_checks", "runtime_checks"]
