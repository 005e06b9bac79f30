"""Improves the knapsack's choice by measuring the divergence of the whole model.

The knapsack minimizes the sum of the divergences of each tensor alone. The divergence of the whole model differs from
this sum, most at low precisions. So the divergence of each change of one tensor in the best choice is measured, and
the knapsack is solved with these values. If the new choice, measured as a whole, is better, it replaces the best one.
If not, the difference between the prediction and the measurement is added to the cost of every change, and the
knapsack is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import attrs

from edgekit.evaluation.fitting._budget import Budget, cheapest
from edgekit.evaluation.fitting._marginals import Bench, Table
from edgekit.evaluation.fitting._measuring import Divergence
from edgekit.evaluation.fitting._problem import Problem, Unit
from edgekit.precision import Precision

#: Largest number of rounds that measure the changes of a choice, and of knapsacks solved in each round.
ROUNDS, ATTEMPTS = 3, 3
#: Standard errors by which a choice must be better to be taken: the best of many measurements is too optimistic.
CERTAIN = 2.0
#: Number of precisions to try on either side of a tensor's present one.
_NEIGHBOURS = 1
Precisions = dict[str, Precision]


@attrs.frozen
class Found:
    """A choice and its divergence."""

    choice: Precisions
    divergence: Divergence


def search(
    bench: Bench,
    problem: Problem,
    budget: Budget,
    table: Table,
    others: Iterable[Precisions] = (),
    rounds: int | None = None,
) -> Found:
    """Return the best choice found within a budget.

    Args:
        bench: measures the divergences.
        problem: the units with their options.
        budget: the size of the whole artifact.
        table: the divergence of each unit in each precision alone.
        others: further choices within the budget to start from.
        rounds: largest number of rounds that measure the changes of a choice; None takes `ROUNDS`.
    """
    choice = cheapest(problem, budget, _costs(problem, table))
    best = Found(choice, bench.whole("start", choice).divergence)
    for other in others:
        whole = bench.whole("start", other, best.choice)
        best = Found(other, whole.divergence) if whole.gain > CERTAIN * whole.gain_error else best
    for number in range(1, (ROUNDS if rounds is None else rounds) + 1):
        improved = _around(bench, problem, budget, table, best, f"round {number}")
        if improved is best:
            break
        best = improved
    return best


def _around(bench: Bench, problem: Problem, budget: Budget, table: Table, best: Found, step: str) -> Found:
    """Return a better choice near the best one; the best one itself if none is found."""
    changes = [(unit, list(_neighbours(unit, best.choice[unit.roles[0]], table))) for unit in problem.units]
    each = bench.each(step, best.choice, changes)
    charge, tried = 0.0, [best.choice]
    for _ in range(ATTEMPTS):
        costs = _costs_around(problem, each, best, charge)
        choice = cheapest(problem, budget, costs)
        if choice in tried:
            break
        tried.append(choice)
        changed = [unit for unit in problem.units if choice[unit.roles[0]] != best.choice[unit.roles[0]]]
        whole = bench.whole(step, choice, best.choice)
        if whole.gain > CERTAIN * whole.gain_error:
            return Found(choice, whole.divergence)
        predicted = sum(each[unit.name, choice[unit.roles[0]].name].kl - best.divergence.kl for unit in changed)
        charge += max(0.0, -whole.gain - predicted) / len(changed)
    return best


def _costs(problem: Problem, table: Table) -> list[list[float]]:
    return [[table[unit.name, option.name].kl for option in unit.options] for unit in problem.units]


def _costs_around(problem: Problem, each: Table, best: Found, charge: float) -> list[list[float]]:
    """Return the cost of each option of each unit: its change of the divergence, infinite if it was not measured."""

    def cost(unit: Unit, option: Precision) -> float:
        if option == best.choice[unit.roles[0]]:
            return 0.0
        changed = each.get((unit.name, option.name))
        return math.inf if changed is None else changed.kl - best.divergence.kl + charge

    return [[cost(unit, option) for option in unit.options] for unit in problem.units]


def _neighbours(unit: Unit, own: Precision, table: Mapping[tuple[str, str], Divergence]) -> Iterator[Precision]:
    """Yield the options next to a unit's present one, leaving out options that a smaller one is as good as."""
    useful: list[Precision] = []
    for option in unit.options:
        kl = table[unit.name, option.name].kl
        if option == own or all(kl < table[unit.name, smaller.name].kl for smaller in useful):
            useful.append(option)
    at = useful.index(own)
    for number in (*range(at - _NEIGHBOURS, at), *range(at + 1, at + 1 + _NEIGHBOURS)):
        if 0 <= number < len(useful):
            yield useful[number]


__all__ = ["ATTEMPTS", "ROUNDS", "Found", "search"]
