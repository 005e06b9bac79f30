"""The search around the knapsack's choice, on the true divergence of the whole model.

The knapsack adds up what each tensor costs alone. Errors of several tensors together cost a little more or less, most
where there is most error. So around a choice it is measured what each change of one tensor costs with all others as
they are; the knapsack is solved with these figures, and its choice is taken if, measured whole, it is better. If it is
not, what was predicted too well is charged to each of the changes, and it is solved again.
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

#: How often changes around a choice are measured, and how often one such table is solved with other charges.
ROUNDS, ATTEMPTS = 3, 3
#: Standard errors by which a choice must be better to be taken: what is chosen among many looks better than it is.
CERTAIN = 2.0
#: Precisions tried on either side of a tensor's own.
_NEIGHBOURS = 1
Precisions = dict[str, Precision]


@attrs.frozen
class Found:
    """A choice and its divergence."""

    choice: Precisions
    divergence: Divergence


def search(bench: Bench, problem: Problem, budget: Budget, table: Table, others: Iterable[Precisions] = ()) -> Found:
    """The best choice that is found within a budget.

    Args:
        bench: measures.
        problem: what there is to choose.
        budget: of the whole artifact.
        table: what each unit costs alone.
        others: further choices within the budget to begin with.
    """
    choice = cheapest(problem, budget, _costs(problem, table))
    best = Found(choice, bench.whole("start", choice).divergence)
    for other in others:
        found = bench.whole("start", other, best.choice)
        best = Found(other, found.divergence) if found.gain > CERTAIN * found.gain_error else best
    for number in range(1, ROUNDS + 1):
        improved = _around(bench, problem, budget, table, best, f"round {number}")
        if improved is best:
            break
        best = improved
    return best


def _around(bench: Bench, problem: Problem, budget: Budget, table: Table, best: Found, step: str) -> Found:
    """A better choice near the best; the best itself if none is found."""
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
        found = bench.whole(step, choice, best.choice)
        if found.gain > CERTAIN * found.gain_error:
            return Found(choice, found.divergence)
        predicted = sum(each[unit.name, choice[unit.roles[0]].name].kl - best.divergence.kl for unit in changed)
        charge += max(0.0, -found.gain - predicted) / len(changed)
    return best


def _costs(problem: Problem, table: Table) -> list[list[float]]:
    return [[table[unit.name, option.name].kl for option in unit.options] for unit in problem.units]


def _costs_around(problem: Problem, each: Table, best: Found, charge: float) -> list[list[float]]:
    """What each change costs; infinite for those that were not measured."""

    def cost(unit: Unit, option: Precision) -> float:
        if option == best.choice[unit.roles[0]]:
            return 0.0
        found = each.get((unit.name, option.name))
        return math.inf if found is None else found.kl - best.divergence.kl + charge

    return [[cost(unit, option) for option in unit.options] for unit in problem.units]


def _neighbours(unit: Unit, own: Precision, table: Mapping[tuple[str, str], Divergence]) -> Iterator[Precision]:
    """The options next to a unit's own, among those that no smaller one is as good as."""
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
