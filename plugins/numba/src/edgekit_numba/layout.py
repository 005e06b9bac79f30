"""Moves blocks between memory, one block after another, and lanes, one block per lane.

Four elements of every lane are moved at a time: 16 bytes from each block, then a 4 x 4 transposition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir

from edgekit_numba.vectors import F32, I16, I32, Code, Rows, Vector

_FOUR = 4
_HALF_INFINITY = 0x7C00

Pick = Callable[[Vector, Vector], Vector]


def load(code: Code, pointer: Any, size: int, into: Rows) -> Vector:
    """Read float32 blocks of `size` elements, one a lane, that follow each other from `pointer`.

    Returns the bits of each block's largest magnitude, above those of any finite float32 for NaN or infinity.
    """
    largest = code.variable(code.i32(0))
    with code.loop(size // _FOUR) as quarter:
        first = code.scaled(quarter, _FOUR)
        for j, vector in enumerate(turned(code, pointer, code.index(size), first)):
            into[code.builder.add(first, code.index(j))] = vector
            magnitude = vector.bits() & 0x7FFFFFFF
            largest.set(magnitude, magnitude > largest.get())
    return largest.get()


def turned(code: Code, pointer: Any, stride: Any, first: Any, align: int = 4) -> list[Vector]:
    """Elements `first` to ``first + 3`` of rows of 32 bits, one a lane, that are `stride` elements apart."""
    four = ir.VectorType(F32, _FOUR).as_pointer()

    def read(lane: int) -> Any:
        at = code.builder.gep(pointer, [code.builder.add(first, code.builder.mul(stride, code.index(lane)))])
        return code.builder.load(code.builder.bitcast(at, four), align=align)

    gathered = [joined(code, [read(lane) for lane in range(k, code.lanes, _FOUR)]) for k in range(_FOUR)]
    return [Vector(code, value) for value in _transposed(code, gathered)]


def joined(code: Code, parts: list[Any]) -> Any:
    """Concatenate vectors of one length; their number is a power of two."""
    while len(parts) > 1:
        width = parts[0].type.count
        parts = [code.shuffle(a, b, range(2 * width)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _transposed(code: Code, rows: Sequence[Any]) -> list[Any]:
    """Transpose 4 x 4 within every four lanes; its own inverse."""
    a, b, c, d = rows
    low, high = (0, 4, 1, 5), (2, 6, 3, 7)  # of the two inputs' fours
    pairs, others = [_woven(code, a, c, p) for p in (low, high)], [_woven(code, b, d, p) for p in (low, high)]
    return [_woven(code, p, q, half) for p, q in zip(pairs, others, strict=True) for half in (low, high)]


def _woven(code: Code, a: Any, b: Any, pattern: Sequence[int]) -> Any:
    """Apply a pattern of a four of a (0-3) and one of b (4-7) to every four lanes."""
    width = a.type.count
    places = [four + p if p < _FOUR else width + four + p - _FOUR for four in range(0, width, _FOUR) for p in pattern]
    return code.shuffle(a, b, places)


def folded(vectors: Sequence[Vector], pick: Pick) -> Vector:
    """Combine all vectors lane by lane with `pick`."""
    return functools.reduce(pick, vectors)


def across(vectors: Sequence[Vector], pick: Pick) -> Vector:
    """In lane j, what `pick` makes of all lanes of vector j, in some order; as many vectors as lanes."""
    code = vectors[0].code
    fours = [_transposed(code, [v.value for v in vectors[k : k + _FOUR]]) for k in range(0, len(vectors), _FOUR)]
    # Every four lanes of one of these hold what is left of the same lanes of four vectors.
    columns = [folded([Vector(code, value) for value in four], pick) for four in fours]
    while len(columns) > 1:
        columns = [_halved(code, a, b, len(columns), pick) for a, b in zip(columns[::2], columns[1::2], strict=True)]
    return columns[0]


def _halved(code: Code, a: Vector, b: Vector, width: int, pick: Pick) -> Vector:
    """Of every `width` neighbouring fours, pick between one half and the other; what is left of a, then of b."""
    starts = range(0, 2 * code.lanes, width * _FOUR)
    half = width * _FOUR // 2

    def side(offset: int) -> Vector:
        places = [start + offset + k for start in starts for k in range(half)]
        return Vector(code, code.shuffle(a.value, b.value, places))

    return pick(side(0), side(half))


class Output:
    """The bytes of the blocks that are being written, one block per lane."""

    def __init__(self, code: Code, pointer: Any, size: Any) -> None:
        self.code, self.pointer, self.size = code, pointer, size
        #: Lanes in which a written scale is infinite or NaN.
        self.overflowed = code.i32(0) != 0

    def words(self, at: Any, words: Sequence[Vector]) -> None:
        """Write 32-bit words at byte `at` of every block, one after the other."""
        for k in range(0, len(words), _FOUR):
            part, place = words[k : k + _FOUR], self.code.builder.add(self.code.index(at), self.code.index(4 * k))
            if len(part) == _FOUR:
                self._fours(place, part)
            else:
                for j, word in enumerate(part):
                    self._each(self.code.builder.add(place, self.code.index(4 * j)), word.value)

    def halves(self, at: int, half: Vector) -> None:
        """Write the low 16 bits of the lanes at byte `at`."""
        self._each(self.code.index(at), self.code.builder.trunc(half.value, self.code.type(I16)))

    def float16(self, at: int, half: Vector) -> None:
        """Write a scale at byte `at`, from its bits."""
        self.flag(half)
        self.halves(at, half)

    def flag(self, half: Vector) -> None:
        """Note where a scale, given by its bits as float16, is infinite or NaN."""
        self.overflowed = self.overflowed | ((half & _HALF_INFINITY) == _HALF_INFINITY)

    def byte(self, at: int, value: Vector) -> None:
        """Write the low 8 bits of the lanes at byte `at`."""
        self._each(self.code.index(at), self.code.builder.trunc(value.value, self.code.type(ir.IntType(8))))

    def _fours(self, at: Any, words: Sequence[Vector]) -> None:
        for k, row in enumerate(_transposed(self.code, [word.value for word in words])):
            for four in range(0, self.code.lanes, _FOUR):
                part = self.code.shuffle(row, row, range(four, four + _FOUR))
                self._store(at, four + k, part)

    def _each(self, at: Any, values: Any) -> None:
        for lane in range(self.code.lanes):
            self._store(at, lane, self.code.builder.extract_element(values, ir.Constant(I32, lane)))

    def _store(self, at: Any, lane: int, value: Any) -> None:
        place = self.code.builder.add(at, self.code.builder.mul(self.code.index(lane), self.code.index(self.size)))
        pointer = self.code.builder.gep(self.pointer, [place])
        self.code.builder.store(value, self.code.builder.bitcast(pointer, value.type.as_pointer()), align=1)


def planes(code: Code, out: Output, at: int, codes: Rows, groups: int, planes: int, bits: int, first: int = 0) -> None:
    """Pack bits `first` to ``first + bits - 1`` of integer codes and write them at byte `at`.

    A block's codes are cut into `groups`, and each group into as many `planes`; the planes of a group share its
    bytes, plane p in bits ``bits * p`` and up.
    """
    group = len(codes) // groups
    width = group // planes  # bytes of a group
    fours = min(width, 16)

    def part(group_start: Any, byte: Any) -> None:
        words = [
            _packed_word(code, codes, [(group_start, byte, width * p + 4 * word) for p in range(planes)], bits, first)
            for word in range(fours // 4)
        ]
        place = code.builder.add(code.builder.udiv(group_start, code.index(planes)), byte)
        out.words(code.builder.add(place, code.index(at)), words)

    with code.loop(groups * width // fours) as step:
        per_group = width // fours
        start = code.builder.mul(code.builder.udiv(step, code.index(per_group)), code.index(group))
        byte = code.builder.mul(code.builder.urem(step, code.index(per_group)), code.index(fours))
        part(start, byte)


def _packed_word(code: Code, codes: Rows, places: Sequence[tuple[Any, Any, int]], bits: int, first: int) -> Vector:
    """One 32-bit word: for each of its bytes, the bits of one code of every plane."""
    word = code.i32(0)
    mask = (1 << bits) - 1
    for p, (start, byte, offset) in enumerate(places):
        for b in range(4):
            row = code.builder.add(code.builder.add(start, byte), code.index(offset + b))
            word = word | (((codes[row] >> first) & mask) << (8 * b + bits * p))
    return word


def bytes_word(codes: Iterable[Vector]) -> Vector:
    """Four integers as the bytes of one 32-bit word, the first lowest."""
    low, *others = codes
    word = low & 0xFF
    for j, other in enumerate(others, 1):
        word = word | ((other & 0xFF) << (8 * j))
    return word


__all__ = ["Output", "Pick", "across", "bytes_word", "folded", "joined", "load", "planes", "turned"]
