"""Checks for quantizers: the encoding follows the format, and the claim holds.

A quantizer has ``encode(x, importance=None) -> parts`` and the attributes ``precision``, ``traits``
(`edgekit.reference.Traits`) and ``claim``: ``"exact"`` (its bytes are the reference's) or a sentence that states its
bound. It may have ``decode(parts, shape)``, and
``bound(x, parts)`` [rows, cols] where it claims a bound of its own; otherwise the reference's bound holds. One that
refuses rows without an importance says so with `Traits.needs_importance`, and is given ones.

The checks lie in five rooms, and run in this order: `manners` (what every caller relies on), `values` (the numbers
on every family of rows), `pieces` (slices, sizes, threads, processes), `surroundings` (the process and its settings)
and `results` (what is stored and comes back).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgekit.precision import Precision
from edgekit.testing._kit import Kit, Profile, Result
from edgekit.testing._subjects import QuantizerSubject, adapt
from edgekit.testing.quantizers import _manners, _pieces, _results, _surroundings, _values

_ROOMS = (_manners.ROOM, _values.ROOM, _pieces.ROOM, _surroundings.ROOM, _results.ROOM)
#: Every check, in the order in which they run: the first that fails names the fault.
KIT: Kit[QuantizerSubject] = Kit("quantizers", {name: c for room in _ROOMS for name, c in room.checks.items()})


def run_quantizer_checks(
    quantizer: Any,
    *,
    precision: str | Precision | None = None,
    claim: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check on a quantizer, without pytest.

    Args:
        quantizer: an object (or its class) as the module describes, a precision's name for the core's own
            reference, or a plugin's registration.
        precision: which one it encodes, where the object does not say so itself.
        claim: what it claims, where the object does not say so itself.
        expected_failures: names of checks that fail, each with its reason; one that does not fail is wrong too.
        checks: only these.
        profile: ``quick``, ``default`` or ``deep``; None asks the environment (EDGEKIT_TEST_PROFILE).

    Raises:
        UsageError: an unknown check, or no quantizer.

    Example:
        >>> results = run_quantizer_checks("affine:int4-sym-g32", profile="quick")
        >>> all(result.ok for result in results)
        True
    """
    subject = adapt(quantizer, precision, claim)
    return KIT.run(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


def quantizer_checks(
    quantizer: Any,
    *,
    precision: str | Precision | None = None,
    claim: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Run the checks under pytest: a decorator that calls the test once for each check, as its argument ``check``.

    Example:
        >>> @quantizer_checks("affine:int4-sym-g32")
        ... def test_conformance(check):
        ...     check()
    """
    subject = adapt(quantizer, precision, claim)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


__all__ = ["KIT", "quantizer_checks", "run_quantizer_checks"]
