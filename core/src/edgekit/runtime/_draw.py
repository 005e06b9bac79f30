"""Draws a token from weights without sorting them.

A vocabulary has up to 262,144 tokens; sorting that many takes ten times as long as everything else that choosing one
needs. What is drawn instead:

    any token       by the inverse of the cumulative distribution, over sums of blocks and then inside one block
    the top k       among the candidates that reach the k-th largest of the blocks' maxima
    the top p       a token of all; if the tokens before it have reached p, it and all behind it are dropped, and
                    another is drawn of what is left, which holds the whole top p. So each token of the top p is
                    drawn with its own share of it.
"""

from __future__ import annotations

import numpy as np

from edgekit.errors import NonFiniteError
from edgekit.typing import F32, F64, Indices

IDS = Indices

#: Size of a block of weights: two levels of about 200 for 50,000 tokens.
BLOCK = 256
_LEAST, _MOST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


def weights(logits: F32, temperature: float) -> F32:
    """Return softmax(logits / temperature) up to a factor: float32 [n], the largest is 1.

    Raises:
        NonFiniteError: a NaN or +infinity among the logits, or all are -infinity.
    """
    peak = logits.max()
    if not np.isfinite(peak):
        raise NonFiniteError("the model computes scores that are not finite; choose another artifact of it")
    # A temperature outside float32's range would divide 0 by 0.
    divisor = np.float32(min(max(temperature, float(_LEAST)), float(_MOST)))
    with np.errstate(over="ignore"):  # a tiny temperature makes exp(-inf), which is correctly 0
        scaled: F32 = np.subtract(logits, peak, dtype=np.float32)
        np.divide(scaled, divisor, out=scaled)
    return np.exp(scaled, out=scaled)


def draw(values: F32, random: np.random.Generator) -> int:
    """Return a random index, with probability proportional to its weight.

    Args:
        values: float32 [n], not negative, at least one above 0.
        random: one number is drawn.
    """
    sums: F64 = np.add.reduceat(values, np.arange(0, len(values), BLOCK), dtype=np.float64).cumsum()
    target = random.random() * float(sums[-1])
    block = _place(sums, target)
    inside: F64 = values[block * BLOCK : (block + 1) * BLOCK].astype(np.float64).cumsum()
    return block * BLOCK + _place(inside, target - (float(sums[block - 1]) if block else 0.0))


def _place(sums: F64, target: float) -> int:
    """Return where cumulative sums first exceed a target; rounding never leads past the last weight above 0."""
    return int(np.searchsorted(sums, min(target, float(np.nextafter(sums[-1], 0.0))), side="right"))


def draw_top_p(logits: F32, values: F32, top_p: float, random: np.random.Generator) -> int:
    """Draw as `draw`, from the most likely tokens that together reach a share of the sum; ties count in order.

    Args:
        logits: float32 [n], which order tokens whose weights round to the same value.
        values: their weights.
        top_p: the share.
        random: one number is drawn for each try.
    """
    reached = top_p * float(values.sum(dtype=np.float64))
    ids: IDS | None = None  # of what is left; None for all
    while True:
        place = draw(values, random)
        before = logits > logits[place]
        before[:place] |= logits[:place] == logits[place]
        if float((values * before).sum(dtype=np.float64)) < reached:
            return place if ids is None else int(ids[place])
        logits, values = logits[before], values[before]
        ids = np.flatnonzero(before) if ids is None else ids[before]


def top_k(logits: F32, count: int) -> IDS:
    """Return the indices of the largest logits, in ascending order; ties count in order."""
    if count >= len(logits):
        return np.arange(len(logits))
    candidates = np.flatnonzero(logits >= _floor(logits, count))
    indices = logits[candidates]
    edge = np.partition(indices, len(indices) - count)[len(indices) - count]
    kept = indices > edge
    equal = np.flatnonzero(indices == edge)
    kept[equal[: count - int(kept.sum())]] = True
    chosen: IDS = candidates[kept]
    return chosen


def _floor(logits: F32, count: int) -> np.float32:
    """Return a lower bound that at least `count` logits reach: the count-th largest of the blocks' maxima."""
    maxima = np.maximum.reduceat(logits, np.arange(0, len(logits), BLOCK))
    if count > len(maxima):
        return np.float32(-np.inf)
    floor: np.float32 = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
    return floor
