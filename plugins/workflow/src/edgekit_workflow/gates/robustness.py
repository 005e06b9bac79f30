"""Gates of robustness: the artifact is run with what users send, and with what they should not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from edgekit.errors import ContextOverflowError, EdgekitError, UsageError
from edgekit.runtime import ChattingRuntime
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.silent import listed, probe_tokens
from edgekit_workflow.gates.subject import Subject

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


Gate = Callable[[Subject, Any], Iterator[str]]


def _result(name: str, gate: Gate, subject: Subject, model: ChattingRuntime) -> GateResult:
    try:
        odd = list(gate(subject, model))
    except EdgekitError as error:
        odd = [f"{type(error).__name__}: {error}"]
    return GateResult(name, "robustness", not odd, detail=f"{model.name}: {listed(odd)}" if odd else "")


def repeats(subject: Subject, model: ChattingRuntime) -> Iterator[str]:
    """The same prompt gets the same answer."""
    tokens, first = subject.policy.robustness.tokens, ""
    for number in range(subject.policy.robustness.repeats):
        answer = model.generate("Once upon a time", max_tokens=tokens)
        if number and answer != first:
            yield f"run {number + 1} answers {answer!r:.40}, the first {first!r:.40}"
        first = first or answer


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


def load(subject: Subject, model: ChattingRuntime) -> Iterator[str]:
    """Many other requests at the same time, abandoned ones among them, do not change an answer, then or afterwards."""
    how = subject.policy.robustness

    def answer() -> str:
        return model.generate("Once upon a time", max_tokens=how.tokens)

    first = answer()
    with ThreadPoolExecutor(CONCURRENT) as pool:
        others = [pool.submit(_other, model, number, how.tokens) for number in range(how.requests)]
        among = [pool.submit(answer) for _ in range(2)]
        asked: list[Future[None] | Future[str]] = [*others, *among]
        errors = [error for future in asked if (error := future.exception()) is not None]
    for error in errors:
        yield f"one of {how.requests} requests at the same time raises {type(error).__name__}: {error!s:.80}"
    answers = [future.result() for future in among if future.exception() is None]
    for given in {text for text in answers if text != first}:
        yield f"among {how.requests} requests at the same time it answers {given!r:.40}, alone {first!r:.40}"
    again = answer()
    if first != again:
        yield f"after {how.requests} requests it answers {again!r:.40}, before {first!r:.40}"


def _other(model: ChattingRuntime, number: int, tokens: int) -> None:
    """Ask for another text; every second one is abandoned after its first piece."""
    text = model.stream(f"{number} other words", max_tokens=tokens, temperature=1.0, seed=number)
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
