"""Olive: the round-to-nearest grid of its own PyTorch passes (Rtn, and the grid of Gptq and AutoClip).

    kind              name                                 one scale for      zero point
    int2|int4|int8    int<b>-sym|asym-g<size>|channel      group of a row     asym: b bits, packed

A group size is a power of two, at least 16, and divides the row. Source: olive-ai 0.13.0
`olive.common.quant.nn.QuantModule`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Granularity, Precision, Spec

CONVENTION = "olive"

_KINDS = {"int2": 2, "int4": 4, "int8": 8}
_SMALLEST_GROUP = 16
# For a float16 or bfloat16 source; twice as much for float32.
_SCALE_BITS = 16


def resolve(spec: Spec) -> Precision | None:
    """Resolve ``olive:int<b>-sym|asym-g<size>|channel``; symmetry and granularity must be stated."""
    if spec.kind not in _KINDS or spec.symmetric is None or spec.reduced:
        return None
    if spec.granularity == "channel":
        return _precision(spec.kind, spec.symmetric, "channel", None)
    if spec.group is not None and _legal(spec.group):
        return _precision(spec.kind, spec.symmetric, "group", spec.group)
    return None


def catalogue() -> Iterator[Precision]:
    """Yield every width in both symmetries, with groups of 32, 64 and 128 as examples."""
    for kind in _KINDS:
        for symmetric in (True, False):
            for group in (32, 64, 128):
                yield _precision(kind, symmetric, "group", group)
            yield _precision(kind, symmetric, "channel", None)


def _legal(group: int) -> bool:
    return group >= _SMALLEST_GROUP and group.bit_count() == 1


def _precision(kind: str, symmetric: bool, granularity: Granularity, group: int | None) -> Precision:
    bits = _KINDS[kind]
    overhead = _SCALE_BITS if symmetric else _SCALE_BITS + bits
    return Precision(
        CONVENTION,
        kind,
        bits=bits,
        granularity=granularity,
        block=group,
        symmetric=symmetric,
        scale_dtype="source",
        bits_per_weight=bits + (Fraction(overhead, group) if group else Fraction(0)),
        name=f"{CONVENTION}:{kind}-{'sym' if symmetric else 'asym'}-{f'g{group}' if group else granularity}",
    )


__all__ = ["CONVENTION", "catalogue", "resolve"]
