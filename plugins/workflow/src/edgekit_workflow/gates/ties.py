"""Near ties: whether two greedy answers differ by the rounding of products alone.

Runtimes compute a prompt in one product of many rows, or, where they keep its beginning from an earlier text, in
several; and each new token in a product of one row. Where the two round otherwise, a token that is as likely as the
most likely one may take its place, and the rest of the text follows it. That is the runtime's rounding, no fault.

Two figures decide, in nats, both from logits that the runtime computes of the whole text at once, without states:

- the *margin* of a token: by how much it is less likely than the most likely one in its place;
- the *bound*: the most that the margin of a token changes between the products of one row and those of many, measured
  on the runtime over an answer, and the policy's limit at most.

An answer is explained if the margin of every token of it is within the bound. One that belongs to another prompt, or
that was computed with another text's states, is not: its tokens are unlikely after the prompt that it is given for.

Source of the bound's default: ONNX Runtime on a processor without AVX-512, 4-bit weights (``MATMUL_NBITS_4``) of
SmolLM2-135M: eight requests at a time changed 6 of 9 answers of 24 tokens, at margins of 0.006 to 0.16, while margins
changed by up to 0.30 to 0.79 between the two products. In float32 and at 8 bits they change by less than 1e-4.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import zip_longest

import attrs
import numpy as np

from edgekit.evaluation.language import log_softmax
from edgekit.runtime import ChattingRuntime, TokenScore
from edgekit.typing import F64

#: Tokens over which the bound is measured, and alternatives to each: as many as runtimes score.
MEASURED, _ALTERNATIVES = 24, 20


@attrs.frozen
class Answer:
    """A greedy answer.

    Attributes:
        text: what was answered.
        tokens: its ids, without the one that ended it.
        ended: whether the model ended it, not the limit.
        scores: of the tokens.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    scores: tuple[TokenScore, ...] = attrs.field(default=(), repr=False, eq=False)


def answered(model: ChattingRuntime, prompt: str | Sequence[int], count: int, alternatives: int = 0) -> Answer:
    """Return the greedy answer of a runtime to a prompt, of at most so many tokens."""
    stream = model.stream(prompt, max_tokens=count, logprobs=alternatives)
    text = "".join(stream)
    scores = tuple(stream.scores)
    return Answer(text, tuple(score.token for score in scores), stream.finish_reason == "stop", scores)


@attrs.frozen
class NearTie:
    """A token at which rounding decides.

    Attributes:
        place: of the token in the answer, from 1.
        margin: in nats.
        bound: in nats.
    """

    place: int
    margin: float
    bound: float

    def __str__(self) -> str:
        where = f"near tie at token {self.place}: {self.margin:.2g} nats apart"
        return f"{where}, rounding moves it by up to {self.bound:.2g}"


def near_tie(
    model: ChattingRuntime,
    prompt: Sequence[int],
    answers: tuple[Answer, Answer],
    ends: Collection[int],
    limit: float,
) -> NearTie | None:
    """Return the near tie at which two answers part; None if rounding does not explain them.

    Args:
        model: which gave both answers; nothing else uses it now.
        prompt: the token ids that both answer.
        answers: two greedy answers that differ.
        ends: ids that end a text.
        limit: largest bound, in nats.

    Raises:
        What the runtime raises.
    """
    parted = [_tokens(answer) for answer in answers]
    places = zip_longest(*parted, fillvalue=-1)
    place = next((number for number, (one, other) in enumerate(places) if one != other), None)
    if place is None:  # the tokens are the same, and the texts are not
        return None
    bound = min(limit, rounding(model, prompt))
    margins = [_margins(model, prompt, tokens, ends) for tokens in parted]
    if any((each > bound).any() for each in margins):
        return None
    return NearTie(place + 1, float(max(each[place] for each in margins if place < len(each))), bound)


def rounding(model: ChattingRuntime, prompt: Sequence[int]) -> float:
    """Return the most, in nats, that a margin changes between products of one row and of many; measured."""
    room = int(getattr(model, "context", len(prompt) + MEASURED)) - len(prompt)
    answer = answered(model, prompt, min(MEASURED, room), _ALTERNATIVES)
    if not answer.tokens:
        return 0.0
    changes = [
        abs((score.top[0].logprob - other.logprob) - (row[score.top[0].token] - row[other.token]))
        for score, row in zip(answer.scores, _rows(model, prompt, answer.tokens), strict=True)
        for other in score.top[1:]
    ]
    return float(max(changes, default=0.0))


#: Stands for whichever token ended a text.
_END = None


def _tokens(answer: Answer) -> list[int | None]:
    return [*answer.tokens, *([_END] if answer.ended else [])]


def _margins(model: ChattingRuntime, prompt: Sequence[int], tokens: Sequence[int | None], ends: Collection[int]) -> F64:
    """By how much each token is less likely than the most likely one in its place, in nats."""
    known = [token for token in tokens if token is not None]
    rows = _rows(model, prompt, tokens)
    ending = sorted(end for end in ends if 0 <= end < rows.shape[1])
    likely = [*rows[np.arange(len(known)), known], *([rows[-1, ending].max()] if len(known) < len(tokens) else [])]
    return np.asarray(rows.max(axis=1) - np.array(likely), np.float64)


def _rows(model: ChattingRuntime, prompt: Sequence[int], tokens: Sequence[int | None]) -> F64:
    """Return log-probabilities [tokens, vocab] of what stands in the place of each token, of the whole text at once."""
    before = [token for token in tokens[:-1] if token is not None]
    return log_softmax(model.logits([*prompt, *before])[len(prompt) - 1 :])


__all__ = ["MEASURED", "Answer", "NearTie", "answered", "near_tie", "rounding"]
