"""Decoders: elements of a block are independent and are computed in vectors, sixteen at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
from llvmlite import ir

from edgekit_numba.kernels import function
from edgekit_numba.rounding import from_half
from edgekit_numba.vectors import F32, I8, I32, I64, Code, Vector, select

_WIDE = 16
_UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled


class Block:
    """A block in memory: its fields as vectors, and the address of its values."""

    def __init__(self, code: Code, pointer: Any, values: Any) -> None:
        self.code, self._pointer, self._values = code, pointer, values

    def bytes(self, at: int) -> Vector:
        """Return sixteen bytes from byte `at`, one for each element."""
        place = self.code.builder.gep(self._pointer, [self.code.index(at)])
        packed = self.code.builder.load(self.code.builder.bitcast(place, self.code.type(I8).as_pointer()), align=1)
        return Vector(self.code, self.code.builder.zext(packed, self.code.type(I32)))

    def byte(self, at: int) -> Vector:
        """Return byte `at`, for every element."""
        return self._scalar(at, I8)

    def half(self, at: int) -> Vector:
        """Return the float16 at byte `at`, for every element."""
        return from_half(self._scalar(at, ir.IntType(16)))

    def word(self, at: int) -> Vector:
        """Return the 32 bits at byte `at`, for every element."""
        return self._scalar(at, I32)

    def _scalar(self, at: int, type_: Any) -> Vector:
        builder = self.code.builder
        place = builder.gep(self._pointer, [self.code.index(at)])
        scalar = builder.load(builder.bitcast(place, type_.as_pointer()), align=1)
        return self.code.broadcast(scalar if type_ == I32 else builder.zext(scalar, I32))

    def set(self, first: int, values: Vector) -> None:
        """Write elements from `first` on."""
        place = self.code.builder.gep(self._values, [self.code.index(first)])
        pointer = self.code.builder.bitcast(place, values.value.type.as_pointer())
        self.code.builder.store(values.value, pointer, align=4)

    def planes(self, at: int, groups: int, planes: int, bits: int, count: int) -> Iterator[tuple[int, Vector]]:
        """Unpack `count` codes packed as `edgekit_numba.layout.planes` does; yields (first element, sixteen codes)."""
        width = count // groups // planes
        for group in range(groups):
            for start in range(0, width, _WIDE):
                packed = self.bytes(at + group * width + start)
                for plane in range(planes):
                    yield (group * planes + plane) * width + start, (packed >> bits * plane) & ((1 << bits) - 1)


def _signed(v: Vector) -> Vector:
    """Sign-extend bytes."""
    return ((v + 128) & 0xFF) - 128


def _one_of(code: Vector, values: Sequence[float]) -> Vector:
    """Return the value of a 4-bit code."""
    level = [code.code.f32(v) for v in values]
    for bit in range(4):
        odd = (code & (1 << bit)) != 0
        level = [select(odd, b, a) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _q8_0(block: Block) -> None:
    d = block.half(0)
    for first in (0, 16):
        block.set(first, _signed(block.bytes(2 + first)).to_float() * d)


def _legacy(block: Block, affine: bool, fifth: bool) -> None:
    """Decode Q4_0, Q4_1, Q5_0 and Q5_1."""
    d, at = block.half(0), 4 if affine else 2
    for first, q in block.planes(at + 4 * fifth, 1, 2, 4, 32):
        if fifth:
            places = ir.Constant(block.code.type(I32), list(range(first, first + _WIDE)))
            high = Vector(block.code, block.code.builder.lshr(block.word(at).value, places)) & 1
            q = q | (high << 4)
        middle = 16 if fifth else 8
        block.set(first, q.to_float() * d + block.half(2) if affine else (q - middle).to_float() * d)


def _six_bit(block: Block, fifth: bool) -> None:
    """Decode Q4_K and Q5_K."""
    grids = [_six_bit_grid(block, sub) for sub in range(8)]
    for first, q in block.planes(48 if fifth else 16, 4, 2, 4, 256):
        sub = first // 32
        if fifth:
            q = q | (((block.bytes(16 + first % 32) >> sub) & 1) << 4)
        step, offset = grids[sub]
        block.set(first, q.to_float() * step - offset)


def _six_bit_grid(block: Block, sub: int) -> tuple[Vector, Vector]:
    if sub < 4:
        scale, depth = block.byte(4 + sub) & 63, block.byte(8 + sub) & 63
    else:
        scale = (block.byte(8 + sub) & 15) | (block.byte(sub) >> 6 << 4)
        depth = (block.byte(8 + sub) >> 4) | (block.byte(4 + sub) >> 6 << 4)
    return block.half(0) * scale.to_float(), block.half(2) * depth.to_float()


def _q2_k(block: Block) -> None:
    d, dmin = block.half(80), block.half(82)
    for first, q in block.planes(16, 2, 4, 2, 256):
        both = block.byte(first // 16)
        block.set(first, q.to_float() * (d * (both & 15).to_float()) - dmin * (both >> 4).to_float())


def _q3_k(block: Block) -> None:
    d = block.half(108)
    for first, q in block.planes(32, 2, 4, 2, 256):
        sub = first // 16
        low = block.byte(96 + sub % 8) >> (4 * (sub // 8)) & 15
        scale = (low | ((block.byte(104 + sub % 4) >> (2 * (sub // 4)) & 3) << 4)) - 32
        high = (block.bytes(first % 32) >> (first // 32)) & 1
        block.set(first, ((q | (high << 2)) - 4).to_float() * (d * scale.to_float()))


def _q6_k(block: Block) -> None:
    d = block.half(208)
    for first, q in block.planes(0, 2, 2, 4, 256):
        high = block.bytes(128 + 32 * (first // 128) + first % 32) >> (2 * (first % 128 // 32)) & 3
        step = d * _signed(block.byte(192 + first // 16)).to_float()
        block.set(first, ((q | (high << 4)) - 32).to_float() * step)


def _iq4_nl(block: Block) -> None:
    for first, q in block.planes(2, 1, 2, 4, 32):
        block.set(first, _one_of(q, _UNEVEN) * block.half(0))


def _iq4_xs(block: Block) -> None:
    for first, q in block.planes(8, 8, 2, 4, 256):
        sub = first // 32
        low = block.byte(4 + sub // 2) >> (4 * (sub % 2)) & 15
        high = block.byte(2 + sub // 4) >> (2 * (sub % 4)) & 3
        scale = (low | (high << 4)) - 32
        block.set(first, _one_of(q, _UNEVEN) * (block.half(0) * scale.to_float()))


def _mxfp4(block: Block) -> None:
    e = block.byte(0)
    half_scale = select(e == 0, 0x00200000, select(e == 1, 0x00400000, (e - 1) << 23)).as_float()
    for first, q in block.planes(1, 1, 2, 4, 32):
        block.set(first, _one_of(q, _E2M1) * half_scale)


def _tq2_0(block: Block) -> None:
    for first, q in block.planes(0, 2, 4, 2, 256):
        block.set(first, (q - 1).to_float() * block.half(64))


def _tq1_0(block: Block) -> None:
    powers = [3**n for n in range(5)]
    for start, width, at in ((0, 32, 0), (160, 16, 32)):
        for n, power in enumerate(powers):
            for first in range(0, width, _WIDE):
                block.set(start + n * width + first, _digit(block.bytes(at + first) * power) * block.half(52))
    # The last sixteen: element 4 n + j is digit n of byte j.
    builder, type_ = block.code.builder, block.code.type(I32)
    shifts = ir.Constant(type_, [8 * (element % 4) for element in range(_WIDE)])
    factors = ir.Constant(type_, [3 ** (element // 4) for element in range(_WIDE)])
    last = Vector(block.code, builder.lshr(block.word(48).value, shifts)) & 0xFF
    block.set(240, _digit(last * Vector(block.code, factors)) * block.half(52))


def _digit(rest: Vector) -> Vector:
    """Return the top ternary digit of the low 8 bits, minus 1, as float32."""
    rest = rest & 0xFF
    return ((rest > 85).ones() + (rest > 170).ones() - 1).to_float()


_BODIES: dict[str, tuple[int, int, Callable[[Block], None]]] = {
    "Q8_0": (32, 34, _q8_0),
    "Q4_0": (32, 18, partial(_legacy, affine=False, fifth=False)),
    "Q4_1": (32, 20, partial(_legacy, affine=True, fifth=False)),
    "Q5_0": (32, 22, partial(_legacy, affine=False, fifth=True)),
    "Q5_1": (32, 24, partial(_legacy, affine=True, fifth=True)),
    "Q2_K": (256, 84, _q2_k),
    "Q3_K": (256, 110, _q3_k),
    "Q4_K": (256, 144, partial(_six_bit, fifth=False)),
    "Q5_K": (256, 176, partial(_six_bit, fifth=True)),
    "Q6_K": (256, 210, _q6_k),
    "IQ4_NL": (32, 18, _iq4_nl),
    "IQ4_XS": (256, 136, _iq4_xs),
    "MXFP4": (32, 17, _mxfp4),
    "TQ1_0": (256, 54, _tq1_0),
    "TQ2_0": (256, 66, _tq2_0),
}


@attrs.frozen
class Decoder:
    """The kernel ``name(blocks, values, count)`` of one block type."""

    name: str
    size: int
    bytes: int
    body: Callable[[Block], None]

    def __call__(self, lanes: int) -> str:
        """Return LLVM's text of the module; each lane is an element, not a block."""
        with function(self.name, [I8.as_pointer(), F32.as_pointer(), I64], _WIDE) as (code, arguments):
            blocks, values, count = arguments
            with code.loop(count) as block:
                source = code.builder.gep(blocks, [code.scaled(block, self.bytes)])
                self.body(Block(code, source, code.builder.gep(values, [code.scaled(block, self.size)])))
        return code.text()


def emitters() -> list[Decoder]:
    """Return the kernels of this module."""
    return [Decoder(f"{kind}_decode", *body) for kind, body in _BODIES.items()]


__all__ = ["Block", "Decoder", "emitters"]
