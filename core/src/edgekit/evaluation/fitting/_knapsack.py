"""The multiple-choice knapsack, solved exactly: one option per item, at least total cost, within a total size.

The method processes the items in order and keeps partial choices (states), each with a size and a cost: dynamic
programming over undominated states by Nemhauser and Ullmann (1969), with a bound from the Lagrangian relaxation.

**Proof of exactness.** Let x be an optimal choice. By induction over k there is a state after the first k items that
can be completed to a choice as good as x. For k = 0 it is the empty state. At each item every state is extended by
every option, so the extension of that state by x's option exists. It is removed only in three cases:

1. It cannot be completed: with the smallest options for the rest its size exceeds `most`, or with the largest options
   it stays below `least`. Then x would not be allowed either.
2. Another state has no larger size and no larger cost (with a `least`: the same size and no larger cost). Completed
   with x's options for the rest, that state has an allowed size and costs no more than x, and replaces it.
3. Its lower bound exceeds the cost of a known allowed choice. For any completion of size s <= `most` and any multiplier
   m >= 0, cost >= cost + m * (s - most), and the right side is at least the state's part plus, for each of the other
   items, the least ``cost + m * size``. So every completion costs more than the known choice and more than x: a
   contradiction.

So the final state of least cost is as good as x. Sizes are integers. Costs are float64 sums in the order of the items;
the bound has a slack that covers their rounding errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import attrs
import numpy as np

from edgekit.typing import F64, I64, Bools, Indices

_Number = TypeVar("_Number", int, float)
#: Number of bisection steps for the multiplier.
_HALVINGS = 100
#: Relative slack of a bound; the rounding error of a sum of some hundred float64 numbers is far smaller.
_SLACK = 1e-9


@attrs.frozen
class Option:
    """An option of an item.

    Attributes:
        size: an integer, at least 0; the sum of sizes is limited.
        cost: a finite number; the sum of costs is minimized.
    """

    size: int
    cost: float


def solve(items: Sequence[Sequence[Option]], most: int, least: int = 0) -> tuple[int, ...] | None:
    """Return the index of an option for each item such that the sum of costs is least.

    Args:
        items: the options of each item.
        most: largest allowed sum of sizes.
        least: smallest allowed sum of sizes.

    Returns:
        A choice of least cost; of several, one of least size. None if no choice has an allowed size.

    Example:
        >>> solve([[Option(1, 5.0), Option(3, 1.0)], [Option(1, 4.0), Option(2, 3.0)]], most=4)
        (1, 0)
    """
    sizes = [np.array([option.size for option in options], np.int64) for options in items]
    costs = [np.array([option.cost for option in options], np.float64) for options in items]
    best = _solved(sizes, costs, most, 0)
    if best is None or _total(sizes, best) >= least:
        return best
    return _solved(sizes, costs, most, least)


def _total(values: Sequence[I64], choice: Sequence[int]) -> int:
    return int(sum(int(of[chosen]) for of, chosen in zip(values, choice, strict=True)))


@attrs.frozen(eq=False)
class _States:
    """Partial choices, sorted by size.

    Attributes:
        size, cost: total size and cost of each state, [n].
        parent: index of the state before the last item, [n].
        option: index of the last item's option, [n].
    """

    size: I64
    cost: F64
    parent: Indices
    option: Indices

    def only(self, keep: Bools | Indices) -> _States:
        """Return the selected states."""
        return _States(self.size[keep], self.cost[keep], self.parent[keep], self.option[keep])


def _solved(sizes: list[I64], costs: list[F64], most: int, least: int) -> tuple[int, ...] | None:
    if sum(int(of.min()) for of in sizes) > most:
        return None
    bound = _Bound.of(sizes, costs, most, least)
    nothing = np.zeros(1, np.intp)
    steps: list[_States] = [_States(np.zeros(1, np.int64), np.zeros(1), nothing, nothing)]
    for item in range(len(sizes)):
        states = _extended(steps[-1], sizes[item], costs[item])
        states = states.only(bound.reachable(states, item + 1))
        steps.append(_undominated(states, by_size=least > 0))
        if not len(steps[-1].size):
            return None
    return _followed_back(steps)


def _extended(states: _States, sizes: I64, costs: F64) -> _States:
    """Return every state extended by every option of the next item."""
    options = np.tile(np.arange(len(sizes)), len(states.size))
    parents = np.repeat(np.arange(len(states.size)), len(sizes))
    return _States(states.size[parents] + sizes[options], states.cost[parents] + costs[options], parents, options)


def _undominated(states: _States, by_size: bool) -> _States:
    """Return the undominated states, sorted by size: no other state is as small and as cheap."""
    ordered = states.only(np.lexsort((states.cost, states.size)))
    if not len(ordered.size):
        return ordered
    first = np.concatenate([[True], ordered.size[1:] != ordered.size[:-1]])
    if by_size:
        return ordered.only(first)
    cheapest = np.minimum.accumulate(ordered.cost)
    return ordered.only(first & np.concatenate([[True], ordered.cost[1:] < cheapest[:-1]]))


def _followed_back(steps: list[_States]) -> tuple[int, ...]:
    at = int(np.argmin(steps[-1].cost))
    options: list[int] = []
    for states in reversed(steps[1:]):
        options.append(int(states.option[at]))
        at = int(states.parent[at])
    return tuple(reversed(options))


@attrs.frozen(eq=False)
class _Bound:
    """Bounds on the size and the cost of all completions of a state.

    Attributes:
        most, least: allowed total sizes.
        smallest, largest: at index k, the smallest and largest total size of items k and later.
        multiplier: the Lagrangian multiplier of the size, at least 0.
        relaxed: at index k, the least total ``cost + multiplier * size`` of items k and later.
        known: cost of a known allowed choice; infinite if none is known.
    """

    most: int
    least: int
    smallest: list[int]
    largest: list[int]
    multiplier: float
    relaxed: list[float]
    known: float

    @classmethod
    def of(cls, sizes: list[I64], costs: list[F64], most: int, least: int) -> _Bound:
        """Return the bounds for a problem that has a choice of size `most` or less."""
        multiplier = _multiplier(sizes, costs, most)
        cheapest = [int(np.argmin(cost + multiplier * size)) for size, cost in zip(sizes, costs, strict=True)]
        relaxed = [float((c + multiplier * s).min()) for s, c in zip(sizes, costs, strict=True)]
        allowed = least <= _total(sizes, cheapest) <= most
        known = sum(float(c[at]) for c, at in zip(costs, cheapest, strict=True)) if allowed else np.inf
        smallest, largest = ([int(f(of)) for of in sizes] for f in (np.min, np.max))
        return cls(most, least, _rest(smallest), _rest(largest), multiplier, _rest(relaxed), known)

    def reachable(self, states: _States, item: int) -> Bools:
        """Return a mask [n] of the states, over the items before `item`, that may lead to an optimal choice."""
        fits: Bools = states.size + self.smallest[item] <= self.most
        fits &= states.size + self.largest[item] >= self.least
        if not np.isfinite(self.known):
            return fits
        paid = states.cost + self.multiplier * states.size + self.relaxed[item]
        limit = self.known + self.multiplier * self.most
        fits &= paid <= limit + _SLACK * (abs(limit) + abs(self.relaxed[0]))
        return fits


def _rest(values: Sequence[_Number]) -> list[_Number]:
    """Return the sums of the values from each index to the end, followed by 0."""
    return list(itertools.accumulate(reversed(values), initial=values[0] - values[0]))[::-1]


def _multiplier(sizes: list[I64], costs: list[F64], most: int) -> float:
    """Return about the least multiplier at which the options of least ``cost + multiplier * size`` fit into `most`."""

    def fits(multiplier: float) -> bool:
        chosen = [int(np.argmin(cost + multiplier * size)) for size, cost in zip(sizes, costs, strict=True)]
        return _total(sizes, chosen) <= most

    if fits(0.0):
        return 0.0
    low, high = 0.0, max(float(np.ptp(cost)) for cost in costs) or 1.0
    while not fits(high):  # ends at the latest when a unit of size costs more than all options
        high *= 4
        if not np.isfinite(high):
            return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


__all__ = ["Option", "solve"]
