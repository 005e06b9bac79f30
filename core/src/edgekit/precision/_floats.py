"""Plain floating point: F32, F16 and BF16."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Precision, Spec

CONVENTION = "float"

_BITS = {"F32": 32, "F16": 16, "BF16": 16}


def resolve(spec: Spec) -> Precision | None:
    """Resolve ``F32``, ``F16`` and ``BF16``, which have no symmetry and no groups."""
    if spec.kind not in _BITS or spec != Spec(spec.convention, spec.kind):
        return None
    bits = _BITS[spec.kind]
    return Precision(
        CONVENTION,
        spec.kind,
        bits=bits,
        granularity="element",
        block=None,
        symmetric=None,
        scale_dtype=None,
        bits_per_weight=Fraction(bits),
        name=f"{CONVENTION}:{spec.kind}",
    )


def catalogue() -> Iterator[Precision]:
    """All three."""
    for kind in _BITS:
        precision = resolve(Spec(CONVENTION, kind))
        assert precision is not None
        yield precision


__all__ = ["CONVENTION", "catalogue", "resolve"]
