"""Gates of robustness: the artifact is run with what users send, and with what they should not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from edgekit.errors import ContextOverflowError, EdgekitError, UsageError
from edgekit.runtime import ChattingRuntime, TokenizingRuntime
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.silent import listed, probe_tokens
from edgekit_workflow.gates.subject import Subject
from edgekit_workflow.gates.ties import Answer, NearTie, answered, near_tie

#: What is answered again and again.
PROMPT = "Once upon a time"
#: Ends of the other prompts. States of a shorter one may be taken for the beginning of an answer to `PROMPT`.
OTHER_WORDS = ("", " other words", " is short", " other words, and more of them than before")
#: What a model has to take, whatever it answers.
ODD_PROMPTS = ("é", "日本", "👩\u200d🚀", "\x00\t\n", "<|end|></s>", "{{ 7 * 7 }}", "a" * 200)
#: What a runtime has to refuse with an error of edgekit's.
REFUSED: tuple[str | list[int], ...] = ([], "\ud800", [-1], [1 << 40])
#: Tokens of the longest prompt that is computed; longer ones only have to be refused beyond the context.
LONGEST = 256
#: Requests that are answered at the same time.
CONCURRENT = 4


def robustness_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``robustness``."""
    gates = {
        "repeats": repeats,
        "long_prompts": long_prompts,
        "malformed_prompts": malformed_prompts,
        "load": load,
        "end_tokens": end_tokens,
    }
    chosen = {name: gate for name, gate in gates.items() if subject.policy.runs(name)}
    if not subject.generates:
        why = "the model does not generate text"
        yield from (GateResult(name, "robustness", None, detail=why) for name in chosen)
    elif chosen:
        with subject.running() as model:
            yield from (_result(name, gate, subject, model) for name, gate in chosen.items())


#: Yields faults, and near ties, which are none.
Gate = Callable[[Subject, Any], Iterator[str | NearTie]]


def _result(name: str, gate: Gate, subject: Subject, model: ChattingRuntime) -> GateResult:
    try:
        found = list(gate(subject, model))
    except EdgekitError as error:
        found = [f"{type(error).__name__}: {error}"]
    odd = [each for each in found if isinstance(each, str)]
    told = odd or sorted({str(each) for each in found})
    return GateResult(name, "robustness", not odd, detail=f"{model.name}: {listed(told)}" if told else "")


def repeats(subject: Subject, model: ChattingRuntime) -> Iterator[str | NearTie]:
    """The same prompt gets the same answer."""
    first = answered(model, PROMPT, subject.policy.robustness.tokens)
    for number in range(1, subject.policy.robustness.repeats):
        answer = answered(model, PROMPT, subject.policy.robustness.tokens)
        if answer.text != first.text:
            yield _otherwise(subject, model, (first, answer), (f"in run {number + 1}", "in the first"))


def long_prompts(subject: Subject, model: ChattingRuntime) -> Iterator[str]:
    """A long prompt gets finite scores, and one beyond the context is refused."""
    config = subject.artifact.model.config
    long = probe_tokens(config.vocab, min(config.context, LONGEST))
    if not np.isfinite(model.logits(long)).all():
        yield f"of a prompt of {len(long)} tokens some scores are not finite"
    yield from _not_refused(model, [0] * (config.context + 1), f"{config.context + 1} tokens", ContextOverflowError)


def malformed_prompts(subject: Subject, model: ChattingRuntime) -> Iterator[str]:
    """Odd texts get an answer; what is no prompt is refused with an error of edgekit's."""
    for prompt in ODD_PROMPTS:
        try:
            model.generate(prompt, max_tokens=1)
        except ContextOverflowError:
            continue
        except Exception as error:  # of whatever library the runtime calls
            yield f"{prompt!r:.30} raises {type(error).__name__}: {error!s:.80}"
    for given in REFUSED:
        yield from _not_refused(model, given, f"{given!r:.30}", UsageError)


def _not_refused(
    model: ChattingRuntime, prompt: str | Sequence[int], shown: str, expected: type[EdgekitError]
) -> Iterator[str]:
    try:
        model.generate(prompt, max_tokens=1)
    except expected:
        return
    except Exception as error:
        yield f"{shown} raises {type(error).__name__}, {expected.__name__} is expected"
    else:
        yield f"{shown} is answered, {expected.__name__} is expected"


def load(subject: Subject, model: ChattingRuntime) -> Iterator[str | NearTie]:
    """Many other requests at the same time, abandoned ones among them, do not change an answer, then or afterwards.

    Answers that part where two tokens are as good as equally likely are the runtime's rounding: see `ties`.
    """
    how = subject.policy.robustness

    def answer() -> Answer:
        return answered(model, PROMPT, how.tokens)

    first = answer()
    with ThreadPoolExecutor(CONCURRENT) as pool:
        others, among = [], []
        for number in range(how.requests):
            others.append(pool.submit(_other, model, number, how.tokens))
            if number % CONCURRENT == 0:  # others come before and after: at the end an answer would be alone
                among.append(pool.submit(answer))
        asked: list[Future[None] | Future[Answer]] = [*others, *among]
        errors = [error for future in asked if (error := future.exception()) is not None]
    again = answer()
    for error in errors:
        yield f"one of {how.requests} requests at the same time raises {type(error).__name__}: {error!s:.80}"
    answers = {a.text: a for future in among if future.exception() is None and (a := future.result())}
    when = f"among {how.requests} requests at the same time", "alone"
    yield from (_otherwise(subject, model, (first, each), when) for text, each in answers.items() if text != first.text)
    if again.text != first.text:
        yield _otherwise(subject, model, (first, again), (f"after {how.requests} requests", "before"))


def _otherwise(
    subject: Subject, model: ChattingRuntime, answers: tuple[Answer, Answer], when: tuple[str, str]
) -> str | NearTie:
    """Return why the second of two answers to `PROMPT` differs from the first: a near tie, or else a fault."""
    tokenizer = subject.tokenizers[0]
    assert tokenizer is not None  # the artifact generates text
    prompt = model.encode(PROMPT) if isinstance(model, TokenizingRuntime) else tokenizer.encode(PROMPT)
    tie = near_tie(model, prompt, answers, tokenizer.end_ids, subject.policy.robustness.near_tie)
    first, other = answers
    return tie or f"{when[0]} it answers {other.text!r:.40}, {when[1]} {first.text!r:.40}"


def _other(model: ChattingRuntime, number: int, tokens: int) -> None:
    """Ask for another text; every second one is abandoned after its first piece."""
    prompt = f"{number}{OTHER_WORDS[number % len(OTHER_WORDS)]}"
    text = model.stream(prompt, max_tokens=tokens, temperature=1.0, seed=number)
    for _ in text:
        if number % 2:
            break
    text.close()


def end_tokens(subject: Subject, model: ChattingRuntime) -> Iterator[str]:
    """Every end token of the source's ends a text of the artifact's."""
    theirs = subject.tokenizers[1]
    assert theirs is not None
    vocab = subject.artifact.model.config.vocab
    for number in sorted(theirs.end_ids):
        if number >= vocab:
            continue
        text = model.stream("Once upon a time", max_tokens=2, logit_bias={number: 100.0})
        written = "".join(text)
        if text.finish_reason != "stop":
            yield f"token {number} ({theirs.tokens[number]!r:.30}) does not end a text: {written!r:.30}"


__all__ = ["CONCURRENT", "LONGEST", "ODD_PROMPTS", "REFUSED", "robustness_gates"]
