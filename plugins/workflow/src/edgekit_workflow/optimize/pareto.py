"""The Pareto front: what no other artifact beats in every respect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: The respects in which artifacts are compared, each with 1 if less is better and -1 if more is.
AXES: Mapping[str, int] = {"kl": 1, "nbytes": 1, "memory": 1, "speed": -1}


def dominates(first: Mapping[str, Any], second: Mapping[str, Any], axes: Mapping[str, int] = AXES) -> bool:
    """Whether the first is at least as good as the second in every respect that both know, and better in one.

    Example:
        >>> dominates({"kl": 0.1, "nbytes": 5}, {"kl": 0.2, "nbytes": 5})
        True
    """
    known = [axis for axis in axes if first.get(axis) is not None and second.get(axis) is not None]
    pairs = [(axes[axis] * first[axis], axes[axis] * second[axis]) for axis in known]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: Sequence[Mapping[str, Any]], axes: Mapping[str, int] = AXES) -> list[int]:
    """Return the indices of the points that no other point dominates, in order.

    Args:
        points: for each artifact its value on some of the axes; the KL divergence no less than the noise floor.
        axes: their names, with 1 where less is better and -1 where more is.

    Example:
        >>> front([{"kl": 0.1, "nbytes": 9}, {"kl": 0.2, "nbytes": 5}, {"kl": 0.3, "nbytes": 7}])
        [0, 1]
    """
    return [n for n, point in enumerate(points) if not any(dominates(other, point, axes) for other in points)]


__all__ = ["AXES", "dominates", "front"]
