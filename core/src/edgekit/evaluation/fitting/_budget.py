"""The budget of a fit, that is the allowed size of the artifact, and the cheapest choice within it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from edgekit.errors import UsageError
from edgekit.evaluation.fitting._knapsack import Option, solve
from edgekit.evaluation.fitting._problem import Choice, Problem
from edgekit.files.sizes import parse_size as parse_size
from edgekit.pipeline._recipes import AnyRecipe
from edgekit.precision import Precision

#: The largest share of a budget that a fit may leave unused.
SLACK = 0.005
#: Largest number of corrections of the estimated bytes besides the tensors.
_CORRECTIONS = 12


@attrs.frozen
class Budget:
    """The largest size of the whole artifact without its manifest.

    Attributes:
        most: the size in bytes.
        asked: the request in words; part of the recipe's name.
    """

    most: int
    asked: str

    @property
    def least(self) -> int:
        """The smallest size in bytes that uses the budget well."""
        return math.ceil(self.most * (1 - SLACK))

    @classmethod
    def of(cls, problem: Problem, size: str | int | None, bits: float | None, like: AnyRecipe | None) -> Budget:
        """Return the budget for exactly one of `size`, `bits` and `like`.

        Args:
            problem: the model and the format.
            size: the size of the artifact, as for `parse_size`.
            bits: average bits per weight, including scales; metadata and tokenizer are added.
            like: a recipe whose artifact has the wanted size.

        Raises:
            UsageError: none or several of the three are given, or the size is malformed.
        """
        if sum(given is not None for given in (size, bits, like)) != 1:
            raise UsageError("say how large the result may be: one of size, bits and like")
        if size is not None:
            return cls(parse_size(size), f"{size}".replace(" ", ""))
        if like is not None:
            plan, _ = problem.of_recipe(like)
            return cls(problem.sizes.whole(plan), f"like {plan.recipe}")
        assert bits is not None
        if not 0 < bits <= 32:
            raise UsageError(f"{bits} bits a weight; choose a number above 0 and at most 32")
        return cls(_nbytes_of_bits(problem, bits), f"{bits:g} bits")


def _nbytes_of_bits(problem: Problem, bits: float) -> int:
    """Return the bytes of an artifact whose weights take `bits` bits on average."""
    plan = problem.plan(problem.smallest)
    units = {role for unit in problem.units for role in unit.roles}
    kept = sum(math.ceil(line.size * line.precision.bits_per_weight / 8) for line in plan if line.role not in units)
    besides = problem.sizes.whole(plan) - problem.units_nbytes(problem.smallest) - kept
    return besides + math.floor(bits / 8 * sum(line.size for line in plan))


def refuse_out_of_reach(problem: Problem, budget: Budget) -> None:
    """Raise an error if every choice is larger than the budget, or smaller than its least size.

    Raises:
        UsageError: no choice meets the budget; the message gives the smallest or the largest possible size.
    """
    smallest, largest = problem.nbytes(problem.smallest), problem.nbytes(problem.largest)
    name = problem.format
    if budget.most < smallest:
        raise UsageError(
            f"a budget of {budget.most:,} bytes ({budget.asked}): the smallest {name} artifact of this model with "
            f"these precisions has {smallest:,} bytes; give more, or allow smaller precisions"
        )
    if budget.least > largest:
        raise UsageError(
            f"a budget of {budget.most:,} bytes ({budget.asked}): the largest {name} artifact of this model with "
            f"these precisions has {largest:,} bytes; give less, or allow larger precisions"
        )


def cheapest(problem: Problem, budget: Budget, costs: Sequence[Sequence[float]]) -> dict[str, Precision]:
    """Return the choice with the least total cost within the budget.

    The bytes of an artifact besides its tensors hardly depend on the choice (in GGUF not at all). They are estimated
    from the last choice that was tried, or by bisection if two choices missed the budget on either side.

    Args:
        problem: the units with their options.
        budget: the size of the whole artifact.
        costs: the cost of each option of each unit; an option of infinite cost is not chosen.

    Returns:
        The precision of each tensor: of the cheapest choice within the budget's slack; if there is none, of the
        largest choice below it; if all choices found are larger, of the smallest artifact.
    """
    besides = _besides(problem, problem.smallest)
    too_small, too_large = -(1 << 62), 1 << 62
    best, reached = problem.smallest, 0
    for _ in range(_CORRECTIONS):
        choice = _solved(problem, costs, budget.most - besides, budget.least - besides)
        nbytes, actual = problem.nbytes(choice), _besides(problem, choice)
        if nbytes > budget.most:
            too_small = max(too_small, besides)
        else:
            best, reached = (choice, nbytes) if nbytes > reached else (best, reached)
            if nbytes >= budget.least or actual == besides:
                return choice
            too_large = min(too_large, besides)
        inside = too_small < actual < too_large
        besides = actual if inside or too_large - too_small > 1 << 61 else (too_small + too_large) // 2
    return best


def _besides(problem: Problem, choice: Choice) -> int:
    """Return the bytes of an artifact besides the tensors of its units."""
    return problem.nbytes(choice) - problem.units_nbytes(choice)


def _solved(problem: Problem, costs: Sequence[Sequence[float]], most: int, least: int) -> dict[str, Precision]:
    items, numbers = [], []
    for unit, of_unit in zip(problem.units, costs, strict=True):
        usable = [number for number, cost in enumerate(of_unit) if math.isfinite(cost)]
        items.append([Option(unit.sizes[number], of_unit[number]) for number in usable])
        numbers.append(usable)
    options = solve(items, most, least) or solve(items, most)
    if options is None:
        return problem.smallest
    return problem.choice([usable[at] for usable, at in zip(numbers, options, strict=True)])


__all__ = ["SLACK", "Budget", "cheapest", "parse_size", "refuse_out_of_reach"]
