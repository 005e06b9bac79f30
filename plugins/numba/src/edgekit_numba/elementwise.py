"""Types without a sum: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4 with its elements side by side.

The largest and smallest elements do not depend on the order, so vectors may hold elements of one block. A group of as
many blocks as lanes is read twice: once for the largest and the smallest elements, from which the scales are computed
with a block in each lane; and once for the codes, with an element in each lane. A type is a `Kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from llvmlite import ir

from edgekit_numba.kernels import LARGEST, SAFE, function, set_flags
from edgekit_numba.layout import Output, Pick, across, folded
from edgekit_numba.rounding import round_away, to_half
from edgekit_numba.searches import reciprocal
from edgekit_numba.vectors import F32, I8, I32, I64, Code, Vector, higher, lower, select

SIZE = 32
_MAGNITUDE = 0x7FFFFFFF
_SIGN = -0x80000000
_MIDPOINTS = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)  # of the doubled values of e2m1
_LARGEST_EXPONENT = 252  # of MXFP4: above, the largest values times the scale are infinite

#: One block's elements, in vectors that follow each other.
Elements = Sequence[Vector]


@attrs.frozen
class Fit:
    """The result of the first pass, a block in each lane.

    Attributes:
        numbers: parameters for encoding an element.
        largest: bits of the largest magnitude; above those of any finite float32 if there is a NaN or infinity.
        odd: blocks that the reference must encode.
    """

    numbers: tuple[Vector, ...]
    largest: Vector
    odd: Vector


@attrs.frozen
class Kind:
    """A block type.

    Attributes:
        bytes: of a block.
        fit: writes the scales of a group of blocks.
        code: returns the int32 code of an element, given the numbers of its block.
        pack: writes the codes of a block.
    """

    bytes: int
    fit: Callable[[Group, Output], Fit]
    code: Callable[..., Vector]
    pack: Callable[[Block, Elements], None]


class Block:
    """A block of bytes that is being written."""

    def __init__(self, code: Code, pointer: Any) -> None:
        self.code, self._pointer = code, pointer

    def set(self, at: int, integers: Any) -> None:
        """Write one or many integers at byte `at`."""
        builder = self.code.builder
        place = builder.gep(self._pointer, [self.code.index(at)])
        builder.store(integers, builder.bitcast(place, integers.type.as_pointer()), align=1)

    def bytes(self, at: int, codes: Elements) -> None:
        """Write a byte an element."""
        for k, code in enumerate(codes):
            self.set(at + k * self.code.lanes, self.code.builder.trunc(code.value, self.code.type(I8)))

    def nibbles(self, at: int, codes: Elements) -> None:
        """Write four bits an element: those of the first half low, those of the second half high."""
        half = len(codes) // 2
        self.bytes(at, [low | (high << 4) for low, high in zip(codes[:half], codes[half:], strict=True)])

    def flags(self, at: int, masks: Elements) -> None:
        """Write one bit an element."""
        self.set(at, self.code.word(masks))


class Numbers:
    """Numbers in memory, one per block: written one by one, read together, or broadcast to the elements of a block."""

    def __init__(self, vector: Vector) -> None:
        element = vector.value.type.element
        self.code, self._rows = vector.code, vector.code.rows(1, element)
        self._first = self.code.builder.bitcast(self._rows.pointer, element.as_pointer())
        self._rows[0] = vector

    def set_one(self, lane: Any, number: Any) -> None:
        """Write the number of one block."""
        self.code.builder.store(number, self.code.builder.gep(self._first, [lane]))

    def get_one(self, lane: Any) -> Any:
        """Return the number of one block."""
        return self.code.builder.load(self.code.builder.gep(self._first, [lane]))

    def one(self, lane: Any) -> Vector:
        """Return the number of one block, in every lane."""
        return self.code.broadcast(self.get_one(lane))

    def get(self) -> Vector:
        """Return all numbers, a block in each lane."""
        return self._rows[0]


class Group:
    """A group of as many blocks as lanes."""

    def __init__(self, code: Code, pointer: Any) -> None:
        self.code, self._pointer = code, pointer

    def elements(self, block: Any) -> list[Vector]:
        """Return the elements of a block."""
        pointer = self.code.builder.gep(self._pointer, [self.code.scaled(block, SIZE)])
        return [self.code.load(pointer, k) for k in range(0, SIZE, self.code.lanes)]

    def largest(self) -> Vector:
        """Return the bits of the largest magnitude of each block; magnitudes compare as their bits."""
        return self._across(lambda bits: bits & _MAGNITUDE, higher)

    def extremes(self) -> tuple[Vector, Vector]:
        """Return the bits of the smallest and the largest element of each block, -0 below 0."""
        return _in_order(self._across(_in_order, lower)), _in_order(self._across(_in_order, higher))

    def _across(self, key: Callable[[Vector], Vector], pick: Pick) -> Vector:
        blocks = [folded([key(v.bits()) for v in self.elements(j)], pick) for j in range(self.code.lanes)]
        return across(blocks, pick)

    def sign_of_first(self, magnitude: Vector, where: Vector) -> Vector:
        """Return the sign bit of each block's first element of a magnitude (bits); only for the blocks `where`."""
        code, signs, magnitudes = self.code, Numbers(self.code.i32(0)), Numbers(magnitude)
        with code.where_any(where), code.loop(code.lanes) as lane:
            bits, target = [v.bits() for v in self.elements(lane)], magnitudes.one(lane)
            signs.set_one(lane, first_sign(code, code.word([(b & _MAGNITUDE) == target for b in bits]), bits))
        return signs.get()


def first_sign(code: Code, chosen: Any, bits: Elements) -> Any:
    """Return the sign bit of the first of the chosen elements, those whose bit in the 32-bit `chosen` is set."""
    first = code.builder.and_(chosen, code.builder.neg(chosen))
    negative = code.builder.and_(first, code.word([b < 0 for b in bits]))
    is_negative = code.builder.icmp_unsigned("!=", negative, ir.Constant(I32, 0))
    return code.builder.select(is_negative, ir.Constant(I32, _SIGN), ir.Constant(I32, 0))


@attrs.frozen
class Emitter:
    """The kernel ``name(x, out, flags, groups)`` of a type; `groups` counts whole sets of lanes."""

    name: str
    kind: Kind

    def __call__(self, lanes: int) -> str:
        """Return LLVM's text of the module."""
        pointers = [F32.as_pointer(), I8.as_pointer(), I8.as_pointer(), I64]
        with function(self.name, pointers, lanes) as (code, arguments), code.loop(arguments[3]) as group:
            self._group(code, arguments, code.scaled(group, lanes))
        return code.text()

    def _group(self, code: Code, arguments: Any, first: Any) -> None:
        kind, builder = self.kind, code.builder
        blocks = builder.gep(arguments[1], [code.scaled(first, kind.bytes)])
        x = Group(code, builder.gep(arguments[0], [code.scaled(first, SIZE)]))
        fit = kind.fit(x, Output(code, blocks, kind.bytes))
        set_flags(code, arguments[2], first, fit.odd | (fit.largest > LARGEST), fit.largest > SAFE)
        numbers = [Numbers(vector) for vector in fit.numbers]
        with code.loop(code.lanes) as lane:
            values = [number.one(lane) for number in numbers]
            codes = [kind.code(v, *values) for v in x.elements(lane)]
            kind.pack(Block(code, builder.gep(blocks, [code.scaled(lane, kind.bytes)])), codes)


def _in_order(bits: Vector) -> Vector:
    """Convert bits of floats to integers that compare as the floats, -0 below 0; or back."""
    return select(bits < 0, bits ^ _MAGNITUDE, bits)


# --- the types --------------------------------------------------------------------------------------------


def _fit_q8_0(x: Group, out: Output) -> Fit:
    largest = x.largest()
    d = largest.as_float() / 127
    inverse = reciprocal(d)
    out.float16(0, to_half(d))
    return Fit((inverse,), largest, inverse.nonfinite())


def _fit_symmetric(x: Group, out: Output, top: int) -> Fit:
    low, high = x.extremes()
    largest, other = higher(low & _MAGNITUDE, high & _MAGNITUDE), lower(low & _MAGNITUDE, high & _MAGNITUDE)
    tie = (largest == other) & (low != high)
    peak = select((low & _MAGNITUDE) == largest, low, high)
    peak = select(tie, largest | x.sign_of_first(largest, tie), peak)
    d = select(largest == 0, 0, peak).as_float() / -top
    inverse = reciprocal(d)
    out.float16(0, to_half(d))
    return Fit((inverse,), largest, inverse.nonfinite())


def _code_symmetric(v: Vector, inverse: Vector, top: int) -> Vector:
    return (v * inverse + (top + 0.5)).to_int().at_most(2 * top - 1)


def _fit_affine(x: Group, out: Output, top: int) -> Fit:
    low, high = x.extremes()
    from_zero = (low & _MAGNITUDE) == 0
    low = select(from_zero, x.sign_of_first(low & _MAGNITUDE, from_zero), low)
    largest = higher(low & _MAGNITUDE, high & _MAGNITUDE)
    minimum, maximum = low.as_float(), select((high & _MAGNITUDE) == 0, 0, high).as_float()
    d = (maximum - minimum) / top
    inverse = reciprocal(d)
    out.float16(0, to_half(d))
    out.float16(2, to_half(minimum))
    return Fit((minimum, inverse), largest, inverse.nonfinite() | d.nonfinite())


def _code_affine(v: Vector, minimum: Vector, inverse: Vector, top: int) -> Vector:
    return ((v - minimum) * inverse + 0.5).to_int().at_most(top)


def _pack_five(block: Block, codes: Elements, at: int) -> None:
    block.flags(at, [(code & 16) != 0 for code in codes])
    block.nibbles(at + 4, [code & 15 for code in codes])


def _fit_mxfp4(x: Group, out: Output) -> Fit:
    largest = x.largest()
    binade, mantissa = largest >> 23, largest & 0x7FFFFF
    up = (~(mantissa < out.code.table(_round_up_from()).lookup(binade & 0xFF))).ones()
    e = select(largest == 0, 0, binade + up - 2)
    half_scale = select(e == 0, 0x00200000, select(e == 1, 0x00400000, (e - 1) << 23)).as_float()
    out.byte(0, e)
    return Fit((half_scale,), largest, (e < 0) | (e > _LARGEST_EXPONENT))


def _code_mxfp4(v: Vector, half_scale: Vector) -> Vector:
    number, size = v.code.i32(0), abs(v)
    for midpoint in _MIDPOINTS:
        number = number + (size > half_scale * midpoint).ones()
    return select(number == 0, 0, number | ((v.bits() >> 28) & 8))


def _round_up_from() -> npt.NDArray[np.int32]:
    """Return, for each biased exponent, the least mantissa whose logarithm, rounded to float32, is the next integer."""
    mantissas = np.arange(0x7FFF00, 0x800000, dtype=np.uint32)
    thresholds = np.full(256, 0x800000, np.int32)
    for exponent in range(1, 255):
        values = (mantissas | np.uint32(exponent << 23)).view(np.float32).astype(np.float64)
        reached = np.log2(values).astype(np.float32) >= exponent - 126
        if reached.any():
            thresholds[exponent] = mantissas[reached.argmax()]
    return thresholds


def _symmetric(top: int) -> dict[str, Any]:
    return {"fit": partial(_fit_symmetric, top=top), "code": partial(_code_symmetric, top=top)}


def _affine(top: int) -> dict[str, Any]:
    return {"fit": partial(_fit_affine, top=top), "code": partial(_code_affine, top=top)}


KINDS = {
    "Q8_0": Kind(34, _fit_q8_0, lambda v, inverse: round_away(v * inverse), lambda b, c: b.bytes(2, c)),
    "Q4_0": Kind(18, **_symmetric(8), pack=lambda block, codes: block.nibbles(2, codes)),
    "Q5_0": Kind(22, **_symmetric(16), pack=partial(_pack_five, at=2)),
    "Q4_1": Kind(20, **_affine(15), pack=lambda block, codes: block.nibbles(4, codes)),
    "Q5_1": Kind(24, **_affine(31), pack=partial(_pack_five, at=4)),
    "MXFP4": Kind(17, _fit_mxfp4, _code_mxfp4, lambda block, codes: block.nibbles(1, codes)),
}


def emitters() -> list[Emitter]:
    """Return the kernels of this module."""
    return [Emitter(name, kind) for name, kind in KINDS.items()]


__all__ = ["KINDS", "SIZE", "Block", "Elements", "Emitter", "Fit", "Group", "Kind", "Numbers", "emitters", "first_sign"]
