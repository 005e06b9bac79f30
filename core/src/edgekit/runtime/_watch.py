"""What is asked of each token of one text: a grammar's mask, and the scores that a caller wants to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.runtime._structured import Matcher
from edgekit.typing import F32, F64

#: Alternatives of a token whose scores can be asked for, as in OpenAI's API.
MOST_SCORES = 20


@attrs.frozen
class TokenScore:
    """A token and how likely the model made it, before temperature, penalties and masks.

    Attributes:
        token: its id.
        text: its bytes, which may be a part of a character.
        logprob: the natural logarithm of its probability, log-softmax(logits).
        top: the most likely tokens in its place, the most likely one first.
    """

    token: int
    text: bytes
    logprob: float
    top: tuple[TokenScore, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values; `of` reads them."""
        return {
            "token": self.token,
            "text": self.text.hex(),
            "logprob": self.logprob,
            "top": [t.to_dict() for t in self.top],
        }

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TokenScore:
        """Return what `to_dict` made."""
        top = tuple(map(cls.of, given["top"]))
        return cls(int(given["token"]), bytes.fromhex(given["text"]), float(given["logprob"]), top)


def log_softmax(logits: F32) -> F64:
    """Return the logarithms of softmax(logits), float64 [..., vocab]."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)), np.float64)


def score(logprobs: F64, token: int, count: int, text: Callable[[int], bytes]) -> TokenScore:
    """Return a token's score.

    Args:
        logprobs: float64 [vocab].
        token: its id.
        count: number of alternatives.
        text: returns the bytes of a token.
    """
    count = min(count, len(logprobs))
    candidates = np.argpartition(-logprobs, count - 1)[:count] if count else np.empty(0, np.int64)
    best = candidates[np.lexsort((candidates, -logprobs[candidates]))]
    top = tuple(TokenScore(int(i), text(int(i)), float(logprobs[i])) for i in best)
    return TokenScore(token, text(token), float(logprobs[token]), top)


@attrs.define(eq=False)
class Watch:
    """Takes part in the choice of one text's tokens; see `edgekit.runtime._sampling.Step`.

    A runtime may choose tokens ahead of those that it has given: so the end is a number of tokens.

    Attributes:
        matcher: says which tokens may follow; None for all.
        logprobs: number of alternatives whose scores are kept; None keeps no scores.
        text: returns the bytes of a token.
        scores: of the tokens so far.
        complete: after how many tokens the grammar was complete; None until then.
    """

    matcher: Matcher | None
    logprobs: int | None
    text: Callable[[int], bytes]
    scores: list[TokenScore] = attrs.field(factory=list, init=False)
    complete: int | None = attrs.field(default=None, init=False)
    _count: int = attrs.field(default=0, init=False)

    def allowed(self, logits: F32) -> F32:
        """Return logits with -infinity for tokens that may not follow."""
        if self.matcher is None or self.complete is not None:
            return logits
        allowed = self.matcher.allowed(logits)
        if allowed is None:
            self.complete = self._count
            return logits
        return allowed

    def chosen(self, logits: F32, token: int) -> None:
        """Note a token and its score."""
        self._count += 1
        if self.matcher is not None and self.complete is None:
            self.matcher.chosen(token)
        if self.logprobs is not None:
            self.scores.append(score(log_softmax(logits), token, self.logprobs, self.text))

    def until_complete(self, tokens: Iterator[int]) -> Iterator[int]:
        """Yield tokens until the grammar is complete and no end token says so."""
        for number, token in enumerate(tokens):
            if self.complete is not None and number >= self.complete:
                return
            yield token


__all__ = ["MOST_SCORES", "TokenScore", "Watch", "log_softmax", "score"]
