"""Checks for quantizers: the encoding follows the format, and the claim holds.

A quantizer has ``encode(x, importance=None) -> parts`` and the attributes ``precision``, ``traits``
(`edgekit.reference.Traits`) and ``claim``: ``"exact"`` (its bytes are the reference's) or a sentence that states its
error bound. It may have ``decode(parts, shape)``, and, if its bound differs from the reference's, ``bound(x, parts)``,
which returns float64 [rows, cols]. One that refuses rows without an importance must set `Traits.needs_importance`; the
checks then pass ones.

The checks are in five modules and run in this order: `manners` (what every caller relies on), `values` (the codes for
every family of rows), `pieces` (slices, sizes, threads, processes), `surroundings` (the settings of the process) and
`results` (stored size, decoding, files).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgekit.precision import Precision
from edgekit.testing._kit import Kit, Profile, Result
from edgekit.testing._subjects import QuantizerSubject, adapt
from edgekit.testing.quantizers import _manners, _pieces, _results, _surroundings, _values

_ROOMS = (_manners.ROOM, _values.ROOM, _pieces.ROOM, _surroundings.ROOM, _results.ROOM)
#: All checks, in the order in which they run: simple faults first.
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
        quantizer: an object (or its class) as described in the module's docstring, the name of a precision for the
            core's reference, or a plugin's registration.
        precision: the precision that it encodes, if the object has no attribute ``precision``.
        claim: its claim, if the object has no attribute ``claim``.
        expected_failures: the reason for each check that is expected to fail, by name; a check that passes nevertheless
            is reported as well.
        checks: names of the checks to run; None for all.
        profile: ``quick``, ``default`` or ``deep``; None takes that of EDGEKIT_TEST_PROFILE.

    Raises:
        UsageError: a check is unknown, or the object is not a quantizer.

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
    """Return a pytest decorator that calls the test once per check, passed as the argument ``check``.

    Example:
        >>> @quantizer_checks("affine:int4-sym-g32")
        ... def test_conformance(check):
        ...     check()
    """
    subject = adapt(quantizer, precision, claim)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


__all__ = ["KIT", "quantizer_checks", "run_quantizer_checks"]
