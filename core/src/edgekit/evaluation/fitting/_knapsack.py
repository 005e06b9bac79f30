"""One option for each item, at the least cost, within a size: the multiple-choice knapsack, solved exactly.

The method goes through the items in order and keeps partial choices (states), each a size and a cost. It is that of
Nemhauser and Ullmann (1969), with a bound from the Lagrangian relaxation.

**Why it is exact.** Let x be an optimal choice, and take its prefixes, the options it has for the first k items. By
induction there is at each k a state that leads to a choice as good as x. For k = 0 it is the empty state. At each item
every state is extended by every option, so the state of k - 1 followed by x's option is there. It is then removed in
three cases only:

1. It cannot be completed: its size and the smallest of the rest exceed `most`, or with the largest of the rest it stays
   below `least`. Then neither could x.
2. Another state has no larger size and no larger cost (with a `least`: the same size and no larger cost). That state,
   with x's options for the rest, has a size that is allowed if x's is, and costs no more than x. It takes its place.
3. Its bound is above the cost of a choice that is known and allowed. For any completion of size s <= `most` and any
   multiplier m >= 0, cost >= cost + m * (s - most), and the right side is at least the state's own part plus, for each
   of the other items, its least ``cost + m * size``. So no completion is as good as the known choice; x is no worse
   than that one, and would not be a completion.

At the end the state of least cost is therefore as good as x. Sizes are integers; costs are sums of float64 in the order
of the items, and the bound is given the slack of their rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import attrs
import numpy as np

from edgekit.typing import F64, I64, Bools, Indices

_Number = TypeVar("_Number", int, float)
#: Halvings of the interval that holds the multiplier.
_HALVINGS = 100
#: Relative slack of a bound: sums of some hundred float64 are exact to far less.
_SLACK = 1e-9


@attrs.frozen
class Option:
    """What an item may be.

    Attributes:
        size: in units that add up; an integer, at least 0.
        cost: what is to be least in sum; finite.
    """

    size: int
    cost: float


def solve(items: Sequence[Sequence[Option]], most: int, least: int = 0) -> tuple[int, ...] | None:
    """The option of each item, by number, so that the sum of the costs is least.

    Args:
        items: the options of each.
        most: of the sum of the sizes.
        least: of the sum of the sizes.

    Returns:
        A choice of least cost; of several the smallest. None if no sum of sizes lies between the two.

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
    """Partial choices, in order of size.

    Attributes:
        size, cost: of each, [n].
        parent: the state before the last item, by number, [n].
        option: of the last item, [n].
    """

    size: I64
    cost: F64
    parent: Indices
    option: Indices

    def only(self, keep: Bools | Indices) -> _States:
        """Some of them."""
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
    """Every state with every option of the next item."""
    options = np.tile(np.arange(len(sizes)), len(states.size))
    parents = np.repeat(np.arange(len(states.size)), len(sizes))
    return _States(states.size[parents] + sizes[options], states.cost[parents] + costs[options], parents, options)


def _undominated(states: _States, by_size: bool) -> _States:
    """The states without those of which another is as small and as cheap; in order of size."""
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
    """What a state can still become.

    Attributes:
        most, least: of the whole size.
        smallest, largest: size of the items from number k on, at k.
        multiplier: of the size, at least 0.
        relaxed: least ``cost + multiplier * size`` of the items from number k on, at k.
        known: cost of a choice that is allowed; infinite if none is known.
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
        """The bound of a problem that has a choice of size `most` or less."""
        multiplier = _multiplier(sizes, costs, most)
        cheapest = [int(np.argmin(cost + multiplier * size)) for size, cost in zip(sizes, costs, strict=True)]
        relaxed = [float((c + multiplier * s).min()) for s, c in zip(sizes, costs, strict=True)]
        allowed = least <= _total(sizes, cheapest) <= most
        known = sum(float(c[at]) for c, at in zip(costs, cheapest, strict=True)) if allowed else np.inf
        smallest, largest = ([int(f(of)) for of in sizes] for f in (np.min, np.max))
        return cls(most, least, _rest(smallest), _rest(largest), multiplier, _rest(relaxed), known)

    def reachable(self, states: _States, item: int) -> Bools:
        """Which states, whose items end before `item`, may lead to a best choice."""
        fits: Bools = states.size + self.smallest[item] <= self.most
        fits &= states.size + self.largest[item] >= self.least
        if not np.isfinite(self.known):
            return fits
        paid = states.cost + self.multiplier * states.size + self.relaxed[item]
        limit = self.known + self.multiplier * self.most
        fits &= paid <= limit + _SLACK * (abs(limit) + abs(self.relaxed[0]))
        return fits


def _rest(values: Sequence[_Number]) -> list[_Number]:
    """Sums of the values from each place to the end, and that of none."""
    return list(itertools.accumulate(reversed(values), initial=values[0] - values[0]))[::-1]


def _multiplier(sizes: list[I64], costs: list[F64], most: int) -> float:
    """About the least multiplier with which the cheapest options, their sizes paid for, are no larger than `most`."""

    def fits(multiplier: float) -> bool:
        chosen = [int(np.argmin(cost + multiplier * size)) for size, cost in zip(sizes, costs, strict=True)]
        return _total(sizes, chosen) <= most

    if fits(0.0):
        return 0.0
    low, high = 0.0, max(float(np.ptp(cost)) for cost in costs) or 1.0
    while not fits(high):  # at the latest where a unit of size costs more than all else
        high *= 4
        if not np.isfinite(high):
            return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


__all__ = ["Option", "solve"]
