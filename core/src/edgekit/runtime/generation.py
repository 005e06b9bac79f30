"""Text generation of runtimes: sampling, stop texts and token counts."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Self, TypedDict

import attrs
import numpy as np

from edgekit.errors import UsageError
from edgekit.runtime import _draw
from edgekit.runtime.arguments import Stop, integer
from edgekit.typing import F32, F64

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


class SamplingOptions(TypedDict, total=False):
    """How the next token is chosen, as keyword arguments; `Sampling` says what they mean, and checks them."""

    temperature: float
    top_k: int
    top_p: float
    seed: int


class GenerationOptions(SamplingOptions, total=False):
    """Keyword arguments of `generate`, `stream`, `chat` and `chat_stream` of every runtime; all may be left out.

    Attributes:
        max_tokens: at most so many tokens; None, the default, for as many as the model's context has room for.
        temperature: 0, the default, takes the most likely token each time; above it, see `Sampling`.
        top_k: only the k most likely tokens; 0, the default, for all.
        top_p: only the most likely tokens that together reach this probability; 1, the default, for all.
        seed: of the random numbers; 0 by default, -1 draws one.
        stop: a text or texts at which to end; they are not part of the result.

    Example:
        >>> def answer(model: Runtime, **options: Unpack[GenerationOptions]) -> str:  # doctest: +SKIP
        ...     return model.generate("Once upon a time", **options)
    """

    max_tokens: int | None
    stop: Stop


def _drawn(seed: int) -> int:
    """Return the seed to use: -1 draws a random one, as in llama.cpp."""
    number = integer("seed", seed, -1)
    return secrets.randbits(32) if number == -1 else number


@attrs.frozen
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, probabilities are softmax(logits / temperature).
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together reach this probability.
        seed: of the random numbers; the same seed gives the same text. -1 draws one, which is then the seed here.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = attrs.field(default=0, converter=_drawn)

    def __attrs_post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise UsageError(f"temperature {self.temperature!r:.80}; choose 0 or more")
        if not (_is_number(self.top_k) and self.top_k >= 0 and self.top_k == int(self.top_k)):
            raise UsageError(f"top_k {self.top_k!r:.80}; choose 0 (all tokens) or more")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UsageError(f"top_p {self.top_p!r:.80}; choose above 0 and at most 1")

    def sampler(self) -> Callable[[F32], int]:
        """Return a function from logits [vocab] to the next token, with a new random generator."""
        random = np.random.default_rng(self.seed)
        return lambda logits: self._choose(logits, random)

    def _choose(self, logits: F32, random: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        if not self.top_k:
            return self._draw(logits, random)
        kept = _draw.top_k(logits, int(self.top_k))
        return int(kept[self._draw(logits[kept], random)])

    def _draw(self, logits: F32, random: np.random.Generator) -> int:
        weights = _draw.weights(logits, self.temperature)
        return _draw.draw(weights, random) if self.top_p == 1 else _draw.draw_top_p(logits, weights, self.top_p, random)

    def probabilities(self, logits: F32) -> F64:
        """Return the probability with which `sampler` chooses each token, float64 [vocab], by sorting the vocabulary.

        Args:
            logits: [vocab], finite or -infinity.
        """
        order = np.argsort(-logits, kind="stable")[: int(self.top_k) or None]
        with np.errstate(over="ignore"):  # a tiny temperature makes exp(-inf), which is correctly 0
            shares = np.exp((logits[order].astype(np.float64) - logits.max()) / (self.temperature or 1e-300))
        shares /= shares.sum()
        # A token stays while those before it have not reached top_p; the first always does.
        shares[shares.cumsum() - shares >= self.top_p] = 0
        result = np.zeros(len(logits))
        result[order] = shares / shares.sum()
        return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


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
