"""Draws a token from weights without sorting them.

A vocabulary has up to 262,144 tokens; sorting that many takes ten times as long as everything else that choosing one
needs. What is drawn instead:

    any token       by the inverse of the cumulative distribution, over sums of blocks and then inside one block
    the top k       among the candidates that reach the k-th largest of the blocks' maxima
    the top p       a token of all; if the tokens before it have reached p, it and all behind it are dropped, and
                    another is drawn of what is left, which holds the whole top p. So each token of the top p is
                    drawn with its own share of it. A small p begins with what a sample of the tokens shows to hold it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import NonFiniteError
from edgekit.typing import F32, F64, Indices

IDS = Indices
Mask = npt.NDArray[np.bool_]
_S = TypeVar("_S", bound=np.generic)

#: Size of a block of weights: two levels of about 200 for 50,000 tokens.
BLOCK = 256
#: A top p below this is sought among the most likely tokens first; above, the first draw mostly decides.
SMALL = 0.5
#: How many tokens tell where the most likely ones begin, and how many times the top p is taken to be safe.
SAMPLE, MARGIN = 1024, 2.0
#: Scores among which equal ones are sought at a time.
STRIDE = 1 << 15
_LEAST, _MOST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


class Drawer:
    """Draws tokens, one after another.

    It keeps its arrays between tokens: pages that are new to the process would cost as much as the arithmetic.

    Args:
        random: one number is drawn for each try.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._rooms: dict[str, npt.NDArray[Any]] = {}

    def draw(self, logits: F32, temperature: float, top_p: float = 1.0, min_p: float = 0.0) -> int:
        """Return a random index, with the probability softmax(logits / temperature).

        Args:
            logits: float32 [n].
            temperature: above 0.
            top_p: only the most likely tokens that together reach this share; ties count in order.
            min_p: before that, only tokens at least this times as likely as the most likely one.

        Raises:
            NonFiniteError: a NaN or +infinity among the logits, or all are -infinity.
        """
        values = weights(logits, temperature, self._room("weights", len(logits), np.float32))
        if min_p:
            np.multiply(values, values >= min_p, out=values)
        sums = block_sums(values)
        return self._place_in(values, sums) if top_p == 1 else self._top_p(logits, values, sums, top_p)

    def top_k(self, logits: F32, count: int) -> IDS:
        """Return the indices of the largest logits, in ascending order; ties count in order."""
        if count >= len(logits):
            return np.arange(len(logits))
        edge = _floor(logits, count)
        candidates = np.flatnonzero(np.greater(logits, edge, out=self._room("mask", len(logits), np.bool_)))
        if len(candidates) > count:
            above = logits[candidates]
            edge = np.partition(above, len(above) - count)[len(above) - count]
            candidates = candidates[above > edge]
        chosen: IDS = np.sort(np.concatenate([candidates, *_first(logits, edge, count - len(candidates))]))
        return chosen

    def _top_p(self, logits: F32, values: F32, sums: F64, top_p: float) -> int:
        reached = top_p * float(sums[-1])
        if top_p < SMALL:
            values, sums = self._most_likely(logits, values, sums, reached)
        while True:
            place = self._place_in(values, sums)
            # What is dropped weighs 0 and stays where it is: choosing elements by a mask takes twenty times as long.
            np.multiply(values, self._before(logits, place), out=values)
            sums = block_sums(values)
            if float(sums[-1]) < reached:
                return place

    def _most_likely(self, logits: F32, values: F32, sums: F64, reached: float) -> tuple[F32, F64]:
        """Drop tokens that are not among the most likely ones of that sum, as a sample of them tells.

        Returns:
            The weights of those that are left, 0 for the others, and their sums; unchanged where the sample misleads.
        """
        step = max(1, len(logits) // SAMPLE)
        order = np.argsort(-logits[::step], kind="stable")
        estimates = step * values[::step][order].cumsum(dtype=np.float64)
        last = order[min(int(np.searchsorted(estimates, MARGIN * reached)), len(order) - 1)]
        left: F32 = self._room("left", len(values), np.float32)
        np.multiply(values, self._before(logits, int(last) * step), out=left)
        left_sums = block_sums(left)
        return (left, left_sums) if float(left_sums[-1]) >= reached else (values, sums)

    def _before(self, logits: F32, place: int) -> Mask:
        """Which tokens are more likely than one, or as likely and before it: bool [n]."""
        before: Mask = np.greater(logits, logits[place], out=self._room("mask", len(logits), np.bool_))
        before[:place] |= np.equal(logits[:place], logits[place], out=self._room("equal", place, np.bool_))
        return before

    def _place_in(self, values: F32, sums: F64) -> int:
        target = self._random.random() * float(sums[-1])
        block = _place(sums, target)
        inside: F64 = values[block * BLOCK : (block + 1) * BLOCK].astype(np.float64).cumsum()
        return block * BLOCK + _place(inside, target - (float(sums[block - 1]) if block else 0.0))

    def _room(self, name: str, count: int, dtype: type[_S]) -> npt.NDArray[_S]:
        if name not in self._rooms or len(self._rooms[name]) < count:
            self._rooms[name] = np.empty(count, dtype)
        return self._rooms[name][:count]


def weights(logits: F32, temperature: float, out: F32) -> F32:
    """Return softmax(logits / temperature) up to a factor in `out`: float32 [n], the largest is 1.

    Raises:
        NonFiniteError: a NaN or +infinity among the logits, or all are -infinity.
    """
    peak = logits.max()
    if not np.isfinite(peak):
        raise NonFiniteError("the model computes scores that are not finite; choose another artifact of it")
    # A temperature outside float32's range would divide 0 by 0.
    divisor = np.float32(min(max(temperature, float(_LEAST)), float(_MOST)))
    with np.errstate(over="ignore"):  # a tiny temperature makes exp(-inf), which is correctly 0
        np.subtract(logits, peak, out=out)
        np.divide(out, divisor, out=out)
    return np.exp(out, out=out)


def block_sums(values: F32) -> F64:
    """Cumulative sums of blocks of weights: float64 [ceil(n / BLOCK)], the last is the sum of all."""
    # Not `reduceat`, which would widen all values at once: a temporary of twice their size costs more than the sums.
    whole = len(values) // BLOCK * BLOCK
    sums = np.empty(-(-len(values) // BLOCK))
    np.add.reduce(values[:whole].reshape(-1, BLOCK), axis=1, dtype=np.float64, out=sums[: whole // BLOCK])
    if whole < len(values):
        sums[-1] = np.add.reduce(values[whole:], dtype=np.float64)
    return sums.cumsum(out=sums)


def _place(sums: F64, target: float) -> int:
    """Return where cumulative sums first exceed a target; rounding never leads past the last weight above 0."""
    return int(np.searchsorted(sums, min(target, float(np.nextafter(sums[-1], 0.0))), side="right"))


def _floor(logits: F32, count: int) -> np.float32:
    """Return a lower bound that at least `count` logits reach: the count-th largest of the blocks' maxima."""
    maxima = np.maximum.reduceat(logits, np.arange(0, len(logits), BLOCK))
    if count > len(maxima):
        return np.float32(-np.inf)
    floor: np.float32 = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
    return floor


def _first(logits: F32, value: np.float32, count: int) -> list[IDS]:
    """Return the indices of the first `count` logits of that value, in pieces."""
    pieces: list[IDS] = []
    for start in range(0, len(logits), STRIDE):
        if count <= 0:
            break
        pieces.append(start + np.flatnonzero(logits[start : start + STRIDE] == value)[:count])
        count -= len(pieces[-1])
    return pieces
