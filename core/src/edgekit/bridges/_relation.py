"""What is declared of every ordered pair of formats, from what each can hold."""

from __future__ import annotations

from typing import Literal

import attrs

from edgekit.bridges._lattice import Carry, Relation
from edgekit.precision import Precision

Offset = Literal["fixed", "integer", "real"]


@attrs.frozen
class Holds:
    """What a lattice format can hold.

    Attributes:
        low, high: the smallest and largest code, counted from the zero where that is fixed, else from 0.
        offset: the zero is ``fixed``, an ``integer`` code of its own, or a ``real`` bias.
        group: columns that share a scale; 0 stands for a whole row.
        scale_bits: significant bits of the scale.
        scale_stored: stored type of the scale when it is written to; None where the format is only read.
    """

    low: int
    high: int
    offset: Offset
    group: int
    scale_bits: int
    scale_stored: Literal["float16", "float32"] | None


def _ggml(bits: int, offset: Offset) -> Holds:
    middle = 1 << (bits - 1) if offset == "fixed" else 0
    return Holds(-middle, (1 << bits) - 1 - middle, offset, 32, 11, "float16")


_GGML = {
    "Q4_0": _ggml(4, "fixed"),
    "Q4_1": _ggml(4, "real"),
    "Q5_0": _ggml(5, "fixed"),
    "Q5_1": _ggml(5, "real"),
    "Q8_0": _ggml(8, "fixed"),
    # float16 times 6 (Q4_K, Q5_K, Q3_K) or 8 bits (Q6_K), multiplied out; searched super-blocks are never written.
    "Q4_K": Holds(0, 15, "real", 32, 17, None),
    "Q5_K": Holds(0, 31, "real", 32, 17, None),
    "Q3_K": Holds(-4, 3, "fixed", 16, 16, None),
    "Q6_K": Holds(-32, 31, "fixed", 16, 18, None),
}


def holds(precision: Precision) -> Holds | None:
    """What a format can hold; None where it is no lattice that has a bridge."""
    convention, kind, bits = precision.convention, precision.kind, precision.bits
    if convention == "ggml":
        return _GGML.get(kind)
    if not kind.startswith("int") or precision.granularity == "tensor" or precision.reduced:
        return None
    group = precision.block or 0
    if convention == "mlx":
        return Holds(0, (1 << bits) - 1, "real", group, 24, "float32")
    if convention == "onnx" and not group:
        return None
    if convention == "openvino":
        return _integers(bits, precision, group, "float16") if kind in ("int4", "int8") else None
    if bits == 1 and precision.symmetric:
        return None
    return _integers(bits, precision, group, "float32")


def _integers(bits: int, precision: Precision, group: int, scale: Literal["float16", "float32"]) -> Holds:
    middle = 1 << (bits - 1) if precision.symmetric else 0
    offset: Offset = "fixed" if precision.symmetric else "integer"
    return Holds(-middle, (1 << bits) - 1 - middle, offset, group, 11 if scale == "float16" else 24, scale)


def lattices(precisions: list[Precision]) -> list[Precision]:
    """Those of the precisions that have a bridge."""
    return [p for p in precisions if holds(p) or p.kind in ("MXFP4", "mxfp4", "mxfp8")]


def relation(source: Precision, target: Precision) -> Relation:
    """Whether codes carry over from one format to the other, and under which condition."""
    carry, why = _judge(source, target)
    return Relation(source.name, target.name, carry, why)


def _judge(source: Precision, target: Precision) -> tuple[Carry, str]:
    if source == target:
        return Carry.EXACT, "the same format"
    micro = [p.kind.lower() for p in (source, target)]
    if micro[0] == micro[1] and micro[0] in ("mxfp4", "mxfp8"):
        return Carry.EXACT, "the same codes and exponents, packed differently; every scale"
    have, wants = holds(source), holds(target)
    if have is None or wants is None:
        return Carry.NO, f"{(source if have is None else target).name} is no lattice that has a bridge"
    if wants.scale_stored is None:
        return Carry.NO, f"{target.name} splits its scales in two levels, which takes a search"
    obstacle = _group(have, wants)
    if obstacle:
        return Carry.NO, obstacle
    condition = _offset(have, wants) or _codes(have, wants)
    return (Carry.CONDITIONAL, condition) if condition else _scale(have, wants)


def _offset(have: Holds, wants: Holds) -> str:
    if have.offset == "real" and wants.offset != "real":
        return "exact where every offset is a whole number of steps that the target has, else not at all"
    if have.offset == "integer" and wants.offset == "fixed":
        return "exact where every zero point suits the target's fixed one, else not at all"
    return ""


def _group(have: Holds, wants: Holds) -> str:
    if wants.group == 0 and have.group != 0:
        return f"groups of {have.group} have scales of their own, the target has one for a row"
    if wants.group and have.group and have.group % wants.group:
        return f"groups of {have.group} do not divide into groups of {wants.group}"
    return ""


def _codes(have: Holds, wants: Holds) -> str:
    if have.offset == "fixed" and wants.offset == "fixed":
        fits = wants.low <= have.low and have.high <= wants.high
    else:
        fits = have.high - have.low <= wants.high - wants.low
    return "" if fits else f"exact where every code lies in {wants.low} … {wants.high}, else not at all"


def _scale(have: Holds, wants: Holds) -> tuple[Carry, str]:
    bits = (have.high - have.low).bit_length()
    if wants.scale_stored == "float16" and have.scale_bits > 11:
        return (
            Carry.BOUNDED,
            "scales are rounded to float16: values move by up to 2^-11 of themselves, and of the offset",
        )
    if wants.offset == "real" and wants.scale_stored == "float16" and have.offset != "real":
        return Carry.BOUNDED, "the offset, zero point times scale, is rounded to float16: by up to 2^-11 of itself"
    if wants.offset == "real" and have.offset != "real" and have.scale_bits + bits > 24:
        return Carry.BOUNDED, "the offset, zero point times scale, is rounded to float32: by up to 2^-24 of itself"
    if have.offset == "real" and have.scale_bits + bits > 24:
        return Carry.BOUNDED, "equal where scale times code is exact in float32, else within 2^-24 of the product"
    return Carry.EXACT, "every finite scale" if have.scale_bits == 11 else "every scale that the source can store"
