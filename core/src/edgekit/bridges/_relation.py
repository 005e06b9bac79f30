"""The relation of every ordered pair of formats, from the values that each can represent."""

from __future__ import annotations

from typing import Literal

import attrs

from edgekit.bridges import _minifloats
from edgekit.bridges._lattice import Carry, Relation
from edgekit.bridges._minifloats import Elements
from edgekit.precision import Precision

Offset = Literal["fixed", "integer", "real"]
_TWO_LEVELS = "splits its scales in two levels, which takes a search"


@attrs.frozen
class Holds:
    """The values that a lattice format can represent.

    Attributes:
        low, high: the smallest and largest code, counted from the zero if that is fixed, else from 0.
        offset: the zero is ``fixed``, an ``integer`` code stored for each group, or a ``real`` bias.
        group: columns that share a scale; 0 for a whole row.
        scale_bits: significant bits of the scale.
        scale_stored: stored type of the scale; None if the format can be read only.
        only_read: the reason why it can be read only.
        signs: whether there are two levels, plus and minus the scale.
        whole: whether there is one scale for the tensor.
        small: whether a scale may be below the range of float16, although it has few bits.
    """

    low: int
    high: int
    offset: Offset
    group: int
    scale_bits: int
    scale_stored: Literal["float16", "float32"] | None
    only_read: str = ""
    signs: bool = False
    whole: bool = False
    small: bool = False


def _ggml(bits: int, offset: Offset) -> Holds:
    middle = 1 << (bits - 1) if offset == "fixed" else 0
    return Holds(-middle, (1 << bits) - 1 - middle, offset, 32, 11, "float16")


_UNEVEN = "has levels that are unevenly spaced"
_GGML = {
    "Q4_0": _ggml(4, "fixed"),
    "Q4_1": _ggml(4, "real"),
    "Q5_0": _ggml(5, "fixed"),
    "Q5_1": _ggml(5, "real"),
    "Q8_0": _ggml(8, "fixed"),
    "Q1_0": Holds(-1, 1, "fixed", 128, 11, "float16", signs=True),
    "Q2_0": Holds(-1, 2, "fixed", 64, 11, "float16"),
    "TQ1_0": Holds(-1, 1, "fixed", 256, 11, "float16"),
    "TQ2_0": Holds(-1, 2, "fixed", 256, 11, "float16"),
    # float16 times 4 (Q2_K), 6 (Q3_K, Q4_K, Q5_K, IQ4_XS) or 8 bits (Q6_K), multiplied out.
    "Q2_K": Holds(0, 3, "real", 16, 15, None, _TWO_LEVELS),
    "Q3_K": Holds(-4, 3, "fixed", 16, 16, None, _TWO_LEVELS),
    "Q4_K": Holds(0, 15, "real", 32, 17, None, _TWO_LEVELS),
    "Q5_K": Holds(0, 31, "real", 32, 17, None, _TWO_LEVELS),
    "Q6_K": Holds(-32, 31, "fixed", 16, 18, None, _TWO_LEVELS),
    "IQ4_NL": Holds(-127, 113, "fixed", 32, 11, None, _UNEVEN),
    "IQ4_XS": Holds(-127, 113, "fixed", 32, 16, None, _UNEVEN),
}


def holds(precision: Precision) -> Holds | None:
    """Return the values that a format can represent; None if it is not a lattice with a bridge."""
    convention, kind, bits = precision.convention, precision.kind, precision.bits
    if convention == "ggml" and kind in _GGML:
        return _GGML[kind]
    small = _minifloats.holds(precision)
    if small:
        return _of_elements(small)
    group, where = precision.block or 0, precision.granularity == "tensor"
    if kind == "qdq_int4":
        return _integers(bits, precision, group, "float32")
    if "int" not in kind or convention not in ("affine", "mlx", "onnx", "olive", "openvino"):
        return None
    if convention == "mlx":
        return Holds(0, (1 << bits) - 1, "real", group, 24, "float32")
    if convention == "onnx" and kind == "uint8" and precision.symmetric and precision.reduced:
        return Holds(-64, 191, "fixed", 0, 24, "float32", whole=where)  # its zero point is 64
    if bits == 1 and precision.symmetric:
        return Holds(-1, 1, "fixed", group, 24, "float32", signs=True, whole=where)
    stored: Literal["float16", "float32"] = "float16" if convention == "openvino" else "float32"
    return attrs.evolve(_integers(bits, precision, group, stored), whole=where)


def _of_elements(elements: Elements) -> Holds | None:
    """Return the lattice of e2m1 elements, multiples of one half, which can be read only."""
    if elements.bits != 4:
        return None
    bits = {"e8m0": 1, "e4m3": 4, "float16": 11, "float32": 24}[elements.scale]
    small = elements.scale in ("e8m0", "float16")
    return Holds(-12, 12, "fixed", elements.group, bits, None, _UNEVEN, small=small)


def _integers(bits: int, precision: Precision, group: int, scale: Literal["float16", "float32"]) -> Holds:
    middle = 1 << (bits - 1) if precision.symmetric else 0
    offset: Offset = "fixed" if precision.symmetric else "integer"
    return Holds(-middle, (1 << bits) - 1 - middle, offset, group, 11 if scale == "float16" else 24, scale)


def lattices(precisions: list[Precision]) -> list[Precision]:
    """Return those of the precisions that have a bridge: lattices and small floats."""
    return [p for p in precisions if holds(p) or _minifloats.holds(p)]


def relation(source: Precision, target: Precision) -> Relation:
    """Return whether codes can be converted from one format to the other, and under which condition."""
    carry, why = _judge(source, target)
    return Relation(source.name, target.name, carry, why)


def _judge(source: Precision, target: Precision) -> tuple[Carry, str]:
    if source == target:
        return Carry.EXACT, "the same format"
    if target.convention == "float":
        return _float(source, target)
    elements = _minifloats.holds(source), _minifloats.holds(target)
    if elements[0] and elements[1]:
        return _small(elements[0], elements[1], target)
    have, wants = holds(source), holds(target)
    if have is None or wants is None:
        return Carry.NO, f"{(source if have is None else target).name} is not a lattice with a bridge"
    if wants.scale_stored is None:
        return Carry.NO, f"{target.name} {wants.only_read}"
    obstacle = _group(have.group, wants.group) or _whole(have, wants)
    if obstacle:
        return Carry.NO, obstacle
    condition = _offset(have, wants) or _codes(have, wants)
    return (Carry.CONDITIONAL, condition) if condition else _scale(have, wants)


def _float(source: Precision, target: Precision) -> tuple[Carry, str]:
    """Return the relation of a format to a float type: every format decodes to float32."""
    if target.kind == "F32":
        return Carry.EXACT, "decoded values are float32"
    digits = {"F16": 11, "BF16": 8}[target.kind]
    return Carry.BOUNDED, f"equal where every value is a {target.kind}, else within 2^-{digits} of the value"


def _small(have: Elements, wants: Elements, target: Precision) -> tuple[Carry, str]:
    """Return the relation of two formats of small floats."""
    if not wants.written:
        return Carry.NO, f"{target.name} has a second scale, for the tensor, which would have to be found"
    obstacle = _group(have.group, wants.group)
    if obstacle:
        return Carry.NO, obstacle
    if wants.bits < have.bits:
        return Carry.CONDITIONAL, "exact where every element is an e2m1 and every scale fits, else not at all"
    if have.scale == wants.scale or (have.scale, wants.scale) == ("e4m3", "float16"):
        return Carry.EXACT, "the same elements and scales, stored differently; every scale"
    return Carry.CONDITIONAL, f"exact where every scale is one of {wants.scale}, else not at all"


def _offset(have: Holds, wants: Holds) -> str:
    if wants.signs and not have.signs:
        return "exact where every value is plus or minus its scale, else not at all"
    if have.offset == "real" and wants.offset != "real":
        return "exact where every offset is a whole number of steps that the target has, else not at all"
    if have.offset == "integer" and wants.offset == "fixed":
        return "exact where every zero point suits the target's fixed one, else not at all"
    return ""


def _group(have: int, wants: int) -> str:
    if wants == 0 and have != 0:
        return f"groups of {have} have scales of their own, the target has one for a row"
    if wants and have and have % wants:
        return f"groups of {have} do not divide into groups of {wants}"
    return ""


def _whole(have: Holds, wants: Holds) -> str:
    return "rows have scales of their own, the target has one for the tensor" if wants.whole and not have.whole else ""


def _codes(have: Holds, wants: Holds) -> str:
    if have.offset == "fixed" and wants.offset == "fixed":
        fits = wants.low <= have.low and have.high <= wants.high
    else:
        span = 1 if have.signs and wants.offset == "real" else have.high - have.low
        fits = span <= wants.high - wants.low
    return "" if fits else f"exact where every code lies in {wants.low} … {wants.high}, else not at all"


def _scale(have: Holds, wants: Holds) -> tuple[Carry, str]:
    bits = (have.high - have.low).bit_length()
    if wants.scale_stored == "float16" and have.small:
        return Carry.CONDITIONAL, "exact where half of every scale is a float16, else not at all"
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
