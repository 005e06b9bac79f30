"""The knapsack against all choices, tried one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgekit.evaluation.fitting._knapsack import Option, solve


def brute(items, most, least=0):
    """The least cost of all choices whose size is allowed; None if none is."""
    costs = [
        sum(option.cost for option in choice)
        for choice in itertools.product(*items)
        if least <= sum(option.size for option in choice) <= most
    ]
    return min(costs, default=None)


def random_items(random, count, options, scale):
    return [
        [
            Option(int(size), float(cost))
            for size, cost in zip(random.integers(0, scale, options), random.random(options), strict=True)
        ]
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_it_is_as_good_as_the_best_of_all_choices(seed):
    random = np.random.default_rng(seed)
    items = random_items(random, int(random.integers(1, 7)), int(random.integers(1, 5)), int(random.integers(2, 60)))
    largest = sum(max(option.size for option in options) for options in items)
    for most in {0, largest // 3, largest // 2, largest}:
        for least in {0, most - 1, most * 9 // 10, most}:
            choice = solve(items, most, least)
            expected = brute(items, most, least)
            if expected is None:
                assert choice is None, "nothing is allowed"
                continue
            chosen = [options[at] for options, at in zip(items, choice, strict=True)]
            assert least <= sum(option.size for option in chosen) <= most
            assert sum(option.cost for option in chosen) == pytest.approx(expected, rel=1e-12)


def test_costs_that_do_not_fall_with_the_size():
    """A larger option that is measured to be worse is not taken."""
    assert solve([[Option(1, 2.0), Option(2, 3.0), Option(3, 1.0)]], most=2) == (0,)


def test_of_choices_that_cost_the_same_the_smallest():
    assert solve([[Option(5, 1.0), Option(2, 1.0), Option(3, 1.0)]] * 3, most=100) == (1, 1, 1)


def test_sizes_of_a_large_model():
    """As many tensors as 48 layers have; no choice is known, but the relaxation is a bound from below."""
    random = np.random.default_rng(7)
    bits = np.array([2.625, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5])
    shapes = [2**22, 2**20, 2**20, 2**22, 11 * 2**20, 11 * 2**20, 11 * 2**20] * 48
    items = [
        [Option(int(b * size / 8), float(w * 4.0**-b)) for b in bits]
        for size, w in zip(shapes, random.lognormal(0, 1, len(shapes)), strict=True)
    ]
    most = int(sum(shapes) * 4.2 / 8)
    choice = solve(items, most, most * 995 // 1000)
    cost = sum(options[at].cost for options, at in zip(items, choice, strict=True))
    bounds = [
        sum(min(o.cost + m * o.size for o in options) for options in items) - m * most
        for m in 10.0 ** np.linspace(-12, -7, 200)
    ]
    assert sum(options[at].size for options, at in zip(items, choice, strict=True)) <= most
    assert max(bounds) <= cost <= max(bounds) * 1.01
