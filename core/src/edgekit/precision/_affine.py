"""Textbook affine quantization: 1 to 8 bits, symmetric or not, per tensor, per channel, per group."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Granularity, Precision, Spec

CONVENTION = "affine"

_KINDS = {f"int{bits}": bits for bits in range(1, 9)}
_SCALE_BITS = 32  # float32
_ZERO_POINT_BITS = 8  # uint8, if there is one


def resolve(spec: Spec) -> Precision | None:
    """Resolve ``affine:int<1-8>-sym|asym-g<size>|channel|tensor``; symmetry and granularity must be stated."""
    if spec.kind not in _KINDS or spec.reduced or spec.symmetric is None or spec.granularity is None:
        return None
    return _precision(_KINDS[spec.kind], spec.symmetric, spec.granularity, spec.group)


def catalogue() -> Iterator[Precision]:
    """Yield every width in both symmetries, with group size 32 as the example of a group size."""
    for bits in _KINDS.values():
        for symmetric in (True, False):
            yield _precision(bits, symmetric, "group", 32)
            yield _precision(bits, symmetric, "channel", None)
            yield _precision(bits, symmetric, "tensor", None)


def _precision(bits: int, symmetric: bool, granularity: Granularity, group: int | None) -> Precision:
    overhead = _SCALE_BITS if symmetric else _SCALE_BITS + _ZERO_POINT_BITS
    where = f"g{group}" if group else granularity
    return Precision(
        CONVENTION,
        f"int{bits}",
        bits=bits,
        granularity=granularity,
        block=group,
        symmetric=symmetric,
        scale_dtype="float32",
        bits_per_weight=bits + (Fraction(overhead, group) if group else Fraction(0)),
        whole_blocks=False,
        name=f"{CONVENTION}:int{bits}-{'sym' if symmetric else 'asym'}-{where}",
    )


__all__ = ["CONVENTION", "catalogue", "resolve"]
