"""Text generation of runtimes: sampling, stop texts and token counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from edgekit.runtime._sampling import Sampling, SamplingOptions
from edgekit.runtime._watch import TokenScore
from edgekit.runtime.arguments import Stop

#: Why a text ended: by the model or a stop text, or because a limit was reached.
FinishReason = Literal["stop", "length"]
#: Turns token ids into pieces of text.
Texts = Callable[[Iterator[int]], Iterator[str]]


@attrs.define(eq=False)
class Generation(Iterator[str]):
    """A text that is being generated: an iterator of its pieces, with token counts and the reason why it ended.

    A runtime makes one with `counting` where it produces tokens one by one; else it sets the fields itself.

    Attributes:
        pieces: of the text.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated so far, with the one that ended the text.
        finish_reason: ``"stop"`` where the model or a stop text ended it, ``"length"`` where `max_tokens` or the
            context did; None until it ends, and if it was cancelled.
        scores: of the tokens so far, without the one that ended the text; empty unless `logprobs` was given.
        cancelled: whether `cancel` was called; a runtime that produces the pieces itself must check this between
            tokens.

    Example:
        >>> with edgekit.load("model") as model:  # doctest: +SKIP
        ...     text = model.stream("Once upon a time", max_tokens=40)
        ...     for piece in text:
        ...         print(piece, end="", flush=True)
        ...     print(text.completion_tokens, text.finish_reason)
    """

    pieces: Iterator[str]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: FinishReason | None = None
    scores: list[TokenScore] = attrs.field(factory=list)
    cancelled: bool = attrs.field(default=False, init=False)

    @classmethod
    def counting(
        cls, prompt_tokens: int, tokens: Iterator[int], text: Callable[[Iterator[int]], Iterator[str]]
    ) -> Self:
        """Return a generation from tokens.

        Args:
            prompt_tokens: tokens of the prompt.
            tokens: new ids, one at a time; they end when the limit is reached.
            text: turns ids into pieces of text; ends where the model or a stop text ends it.
        """
        self = cls(iter(()), prompt_tokens)
        self.pieces = self._until_end(tokens, text)
        return self

    def _until_end(self, tokens: Iterator[int], text: Texts) -> Iterator[str]:
        yield from text(self._counted(tokens))
        if not self.cancelled:
            self.finish_reason = self.finish_reason or "stop"

    def _counted(self, tokens: Iterator[int]) -> Iterator[int]:
        for token in tokens:
            self.completion_tokens += 1
            yield token
            if self.cancelled:
                return
        self.finish_reason = "length"

    def __next__(self) -> str:
        return next(self.pieces)

    def cancel(self) -> None:
        """End the text after the current token; any thread may call it."""
        self.cancelled = True

    def close(self) -> None:
        """Discard the rest of the text, in the thread that iterates."""
        close = getattr(self.pieces, "close", None)
        if close is not None:
            close()


class GenerationOptions(SamplingOptions, total=False):
    """Keyword arguments of `generate`, `stream`, `chat` and `chat_stream` of every runtime; all may be left out.

    Attributes:
        max_tokens: at most so many tokens; None, the default, for as many as the model's context has room for.
        temperature: 0, the default, takes the most likely token each time; above it, see `Sampling`.
        top_k: only the k most likely tokens; 0, the default, for all.
        top_p: only the most likely tokens that together reach this probability; 1, the default, for all.
        seed: of the random numbers; 0 by default, -1 draws one.
        min_p: only tokens at least this times as likely as the most likely one; 0, the default, for all.
        repetition_penalty, presence_penalty, frequency_penalty, logit_bias: see `Sampling`; by default without effect.
        stop: a text or texts at which to end; they are not part of the result.
        stop_token_ids: tokens at which to end, besides the model's own.
        logprobs: keeps each token's score and those of so many alternatives, at most 20; None, the default, none.
        json_schema: the text is JSON that this schema accepts; needs llguidance (`edgekit-core[structured]`), as do
            the next two, of which one may be given.
        regex: the text matches this regular expression, in Rust's syntax.
        grammar: the text matches this grammar, in llguidance's variant of Lark.

    Example:
        >>> def answer(model: Runtime, **options: Unpack[GenerationOptions]) -> str:  # doctest: +SKIP
        ...     return model.generate("Once upon a time", **options)
    """

    max_tokens: int | None
    stop: Stop
    stop_token_ids: Sequence[int] | None
    logprobs: int | None
    json_schema: Mapping[str, Any] | bool | str | None
    regex: str | None
    grammar: str | None


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield a text up to the first complete stop text; text that may be the start of one is delayed.

    Args:
        pieces: of new text, in order.
        stop: texts at which to end; an empty one never ends a text.
    """
    stops = [text for text in stop if text]
    held = ""
    for piece in pieces:
        held += piece
        ends = [place for place in map(held.find, stops) if place >= 0]
        if ends:
            yield from filter(None, [held[: min(ends)]])
            return
        safe = len(held) - _started(held, stops)
        if safe:
            yield held[:safe]
            held = held[safe:]
    yield from filter(None, [held])


def _started(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest suffix of the text that is a prefix of a stop text."""
    return max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)


__all__ = ["FinishReason", "Generation", "GenerationOptions", "Sampling", "SamplingOptions", "Texts", "until"]
