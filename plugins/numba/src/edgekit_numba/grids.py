"""IQ2 and IQ3: groups of magnitudes on a grid; see `edgekit.reference.ggml` for what each type computes.

The search of a sub-block runs with a block in each lane. Only the groups that are off the grid leave it: their
neighbours are compared one group after another, with a neighbour in each lane, from tables with the levels of all
neighbours of every place side by side (`grid_tables`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
from llvmlite import ir

from edgekit_numba.grid_tables import TYPES
from edgekit_numba.kernels import Emitter, Weights
from edgekit_numba.layout import Output, bytes_word
from edgekit_numba.rounding import nearest_int, to_half
from edgekit_numba.searches import positive, squares, weigh
from edgekit_numba.vectors import F32, I8, I16, I32, I64, Code, Rows, Vector, select

_LARGEST = 0x7F7FFFFF  # the bits of the largest float32
#: Types of the pointers to a kernel's tables, which are the last arguments: see `grid_tables.Tables`.
POINTERS = (I32.as_pointer(), I8.as_pointer(), I16.as_pointer())
_SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)


class Snap:
    """Moves groups onto the grid."""

    def __init__(self, code: Code, dimensions: int, pointers: Sequence[Any]) -> None:
        self.code, self.dimensions = code, dimensions
        self.places, self.levels, self.neighbours = pointers
        self.lost = code.rows(1, I32)
        self.lost[0] = code.i32(0)

    def point(self, places: Rows, row: Any, into: Rows, to: Any) -> None:
        """Write the numbers of the points at the places of a row."""
        with self.code.loop(self.code.lanes) as lane:
            entry = self._entry(places.lane(row, lane))
            into.set_lane(to, lane, self.code.builder.load(entry, align=4))

    def _entry(self, place: Any) -> Any:
        builder = self.code.builder
        at = builder.shl(builder.zext(place, I64), ir.Constant(I64, 1))
        return builder.gep(self.places, [at])

    def move(self, places: Rows, off: Rows, x: Rows, roots: Rows, scale: Rows, shifts: Rows | None = None) -> None:
        """Replace places that are no points by those of their best neighbours.

        Args:
            places: of each group, int32; changed in place.
            off: set to 1 for groups that were off the grid, else to 0.
            x: magnitudes.
            roots: of their weights.
            scale: a row.
            shifts: added to the levels of each group, float32; None for none.
        """
        code = self.code
        with code.loop(len(places)) as group, code.loop(code.lanes) as lane:
            self._move(places, off, x, roots, scale, shifts, group, lane)

    def _move(
        self, places: Rows, off: Rows, x: Rows, roots: Rows, scale: Rows, shifts: Rows | None, group: Any, lane: Any
    ) -> None:
        builder, one = self.code.builder, ir.Constant(I32, 1)
        entry = self._entry(places.lane(group, lane))
        count = builder.load(builder.gep(entry, [ir.Constant(I32, 1)]), align=4)
        outside = builder.icmp_signed("!=", count, ir.Constant(I32, 0))
        off.set_lane(group, lane, builder.zext(outside, I32))
        with builder.if_then(outside):
            first = self.code.scaled(group, self.dimensions)
            rows = [builder.add(first, self.code.index(k)) for k in range(self.dimensions)]
            near = self._nearest(
                builder.load(entry, align=4),
                count,
                [self.code.broadcast(x.lane(row, lane)) for row in rows],
                [self.code.broadcast(roots.lane(row, lane)) for row in rows],
                self.code.broadcast(scale.lane(0, lane)),
                None if shifts is None else self.code.broadcast(shifts.lane(group, lane)),
            )
            found = builder.icmp_signed(">=", near, ir.Constant(I32, 0))
            places.set_lane(group, lane, builder.select(found, near, ir.Constant(I32, 0)))
            with builder.if_then(builder.not_(found)):
                self.lost.set_lane(0, lane, one)

    def _nearest(
        self, first: Any, count: Any, x: list[Vector], roots: list[Vector], scale: Vector, shift: Vector | None
    ) -> Any:
        """Return the place of the first neighbour with the least error, int32; -1 if no error is finite."""
        code, builder = self.code, self.code.builder
        least, best = code.scalar(I32, _LARGEST), code.scalar(I32, -1)
        with code.loop(builder.zext(count, I64)) as step:
            chunk = builder.add(builder.zext(first, I64), step)
            error = self._errors(chunk, x, roots, scale, shift).bits()
            smallest = code.smallest(error)
            with builder.if_then(builder.icmp_unsigned("<", smallest, builder.load(least))):
                builder.store(smallest, least)
                lane = code.first(error == code.broadcast(smallest))
                at = builder.add(builder.mul(chunk, code.index(code.lanes)), builder.zext(lane, I64))
                place = builder.load(builder.gep(self.neighbours, [at]), align=2)
                builder.store(builder.zext(place, I32), best)
        return builder.load(best)

    def _errors(self, chunk: Any, x: list[Vector], roots: list[Vector], scale: Vector, shift: Vector | None) -> Vector:
        code, builder = self.code, self.code.builder
        base = builder.mul(chunk, code.index(self.dimensions * code.lanes))
        error = code.f32(0)
        for k, (v, w) in enumerate(zip(x, roots, strict=True)):
            at = builder.gep(self.levels, [builder.add(base, code.index(k * code.lanes))])
            bytes_ = builder.load(builder.bitcast(at, code.type(I8).as_pointer()), align=1)
            level = Vector(code, builder.sitofp(bytes_, code.type(F32)))
            difference = scale * (level if shift is None else level + shift) - v
            error = error + w * difference * difference
        return error


@attrs.frozen
class _Sub:
    """Scratch memory of a sub-block."""

    x: Rows
    weights: Rows
    roots: Rows
    places: Rows
    off: Rows
    best: Rows
    best_off: Rows
    scale: Rows

    @classmethod
    def of(cls, code: Code, size: int, groups: int) -> _Sub:
        """New memory for so many elements and groups."""
        x, weights, roots = (code.rows(size) for _ in range(3))
        places, off, best, best_off = (code.rows(groups, I32) for _ in range(4))
        return cls(x, weights, roots, places, off, best, best_off, code.rows(1))


def _round(code: Code, search: Any, sub: _Sub, inverse: Vector) -> None:
    """Write the places of the groups under an inverse scale."""
    n = search.points.dimensions
    with code.loop(len(sub.places)) as group:
        place = code.i32(0)
        for k in range(n):
            v = sub.x[code.scaled(group, n, k)]
            q = nearest_int((inverse * v - 1) * 0.5).at_most(search.top - 1).at_least(0)
            place = place | (q << (search.bits * k))
        sub.places[group] = place


def _sums(code: Code, search: Any, sub: _Sub, places: Rows) -> tuple[Vector, Vector]:
    """The weighted sums of level * x and of level²."""
    n, mask = search.points.dimensions, (1 << search.bits) - 1
    sum_qx, sum_q2 = code.variable(code.f32(0)), code.variable(code.f32(0))
    with code.loop(len(places)) as group:
        place, qx, q2 = places[group], sum_qx.get(), sum_q2.get()
        for k in range(n):
            row = code.scaled(group, n, k)
            level = (((place >> (search.bits * k)) & mask) * 2 + 1).to_float()
            w = sub.weights[row]
            qx, q2 = qx + w * sub.x[row] * level, q2 + w * level * level
        sum_qx.set(qx)
        sum_q2.set(q2)
    return sum_qx.get(), sum_q2.get()


def _fit(code: Code, search: Any, snap: Snap, sub: _Sub, peak: Vector, first: Vector) -> Vector:
    """Search the scale of a sub-block; its points are in `best`."""
    scale, best = code.variable(first), code.variable(code.f32(0))
    for group in range(len(sub.places)):
        sub.best[group] = code.i32(0)
        sub.best_off[group] = code.i32(int(search.all_again))
    steps = code.table(search.steps)
    with code.loop(len(search.steps)) as step:
        inverse = steps[step] / peak
        sub.scale[0] = 1 / inverse
        _round(code, search, sub, inverse)
        snap.move(sub.places, sub.off, sub.x, sub.roots, sub.scale)
        sum_qx, sum_q2 = _sums(code, search, sub, sub.places)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best.get() * sum_q2)
        scale.set(sum_qx / sum_q2, better)
        best.set(scale.get() * sum_qx, better)
        for group in range(len(sub.places)):
            sub.best[group] = select(better, sub.places[group], sub.best[group])
            sub.best_off[group] = select(better, sub.off[group], sub.best_off[group])
    _again(code, search, snap, sub, scale)
    return scale.get()


def _again(code: Code, search: Any, snap: Snap, sub: _Sub, scale: Any) -> None:
    """Round groups once more with the best scale, and fit it again."""
    off = code.i32(int(search.from_positive))
    for row in sub.best_off:
        off = off | row
    again = (off != 0) & (scale.get() > 0)
    with code.where_any(again):
        inverse = 1 / scale.get()
        sub.scale[0] = scale.get()
        _round(code, search, sub, inverse)
        snap.move(sub.places, sub.off, sub.x, sub.roots, sub.scale)
        for group in range(len(sub.places)):
            renewed = again if search.all_again else again & (sub.best_off[group] != 0)
            sub.best[group] = select(renewed, sub.places[group], sub.best[group])
        sum_qx, sum_q2 = _sums(code, search, sub, sub.best)
        scale.set(sum_qx / sum_q2, again & (sum_q2 > 0))


def _without_signs(code: Code, part: Rows, sub: _Sub, even: bool, signs: Rows, first: Any) -> None:
    """Write magnitudes, and the signs of each eight elements as the bits of an integer, in rows `first` and on."""
    with code.loop(len(part) // 8) as eight:
        rows = [code.scaled(eight, 8, k) for k in range(8)]
        x = [part[row] for row in rows]
        negative = [v < 0 for v in x]
        if even:
            wrong = _least(code, [sub.weights[row] for row in rows], x)
            odd = functools.reduce(lambda a, b: a ^ b, negative)
            flips = [odd & (wrong == k) for k in range(8)]
        bits = code.i32(0)
        for k, row in enumerate(rows):
            magnitude = select(negative[k], -x[k], x[k])
            minus = negative[k]
            if even:
                magnitude, minus = select(flips[k], -magnitude, magnitude), minus ^ flips[k]
            sub.x[row] = magnitude
            bits = bits | (minus.ones() << k)
        signs[code.builder.add(first, eight)] = bits


def _least(code: Code, weights: list[Vector], x: list[Vector]) -> Vector:
    """Which element weighs least, the first of equal ones."""
    least, number = weights[0] * x[0] * x[0], code.i32(0)
    for k in range(1, len(x)):
        weight = weights[k] * x[k] * x[k]
        less = weight < least
        least, number = select(less, weight, least), select(less, code.i32(k), number)
    return number


def _weights(kind: str, part: Rows, power: Vector, importance: Rows | None, sub: _Sub) -> None:
    if importance is not None:
        weigh(part, importance, power, sub.weights)
    else:
        for j, v in enumerate(part):
            sub.weights[j] = power * 0.25 + v * v if kind == "IQ2_S" else v * v
    for j, w in enumerate(sub.weights):
        sub.roots[j] = w.sqrt()


class _Type(NamedTuple):
    """What differs between the types beside the search: how signs, zeros and the scale d are treated."""

    even: bool
    share: float
    epsilon: float
    fudge: float
    clears: bool
    write: Callable[[Code, Output, Rows, Rows, Rows], None]


@attrs.frozen
class _Encoded:
    """Of each block: the points of its groups, signs, scales of sub-blocks, and where it is left to the reference."""

    points: Rows
    signs: Rows
    scales: Rows
    skipped: Rows

    @classmethod
    def of(cls, code: Code, groups: int, subs: int) -> _Encoded:
        """New memory."""
        return cls(code.rows(groups, I32), code.rows(32, I32), code.rows(subs), code.rows(1, I32))


def _body(kind: str, how: _Type) -> Callable[..., Vector]:
    search = TYPES[kind].SEARCH
    n, dims = search.sub, search.points.dimensions

    def body(code: Code, x: Rows, out: Output, weights: Weights | None, pointers: Sequence[Any]) -> Vector:
        snap, sub = Snap(code, dims, pointers), _Sub.of(code, n, n // dims)
        done = _Encoded.of(code, 256 // dims, 256 // n)
        done.skipped[0] = code.i32(0)
        power = squares(x) * how.share / 256
        codes = code.rows(n, I32)
        with code.loop(256 // n) as number:
            first = code.scaled(number, n)
            importance = None if weights is None else weights.columns.part(first, n)
            _weights(kind, x.part(first, n), power, importance, sub)
            _sub_block(code, search, how, snap, sub, done, x.part(first, n), number, codes)
        odd = (snap.lost[0] != 0) | _finish(code, how, out, done)
        return odd

    return body


def _sub_block(
    code: Code, search: Any, how: _Type, snap: Snap, sub: _Sub, done: _Encoded, part: Rows, number: Any, codes: Rows
) -> None:
    n, dims = search.sub, search.points.dimensions
    _without_signs(code, part, sub, how.even, done.signs, code.scaled(number, n // 8))
    peak = sub.x[0]
    for j in range(1, n):
        peak = select(peak > sub.x[j], peak, sub.x[j])
    skipped = peak < how.epsilon
    first = peak / (2 * search.top - 1)
    if search.from_positive:
        first = positive(code, sub.x, sub.weights, codes, search.top + 1)
        peak = first * search.top
        skipped = skipped | ~(peak > 0)
    scale = _fit(code, search, snap, sub, select(skipped, 1, peak), first)
    inverted = (scale < 0) & ~skipped
    done.scales[number] = select(skipped, 0, select(inverted, -scale, scale))
    done.skipped[0] = done.skipped[0] | skipped.ones()
    with code.loop(n // 8) as eight:
        row = code.builder.add(code.scaled(number, n // 8), eight)
        flipped = select(inverted, done.signs[row] ^ 0xFF, done.signs[row])
        done.signs[row] = select(skipped, 0, flipped)
    with code.loop(n // dims) as group:
        sub.best[group] = select(skipped, 0, sub.best[group])
        row = code.builder.add(code.scaled(number, n // dims), group)
        snap.point(sub.best, group, done.points, row)


def _finish(code: Code, how: _Type, out: Output, done: _Encoded) -> Vector:
    """Write the block; gives where it is left to the reference."""
    largest = code.f32(0)
    for scale in done.scales:
        largest = select(largest > scale, largest, scale)
    zero = largest == 0
    d = largest / 31
    inverse, ends = 1 / d, code.rows(len(done.scales), I32)
    for j, scale in enumerate(done.scales):
        end = nearest_int((inverse * scale - 1) * 0.5).at_most(15).at_least(0)
        ends[j] = select(zero, 0, end)
    stored = d if how.fudge == 1 else d * how.fudge
    out.float16(0, select(zero, 0, to_half(stored)))
    if how.clears:
        for rows in (done.points, done.signs):
            with code.loop(len(rows)) as row:
                rows[row] = select(zero, 0, rows[row])
    how.write(code, out, done.points, done.signs, ends)
    odd = stored.nonfinite()
    return odd if how.clears else odd | ((done.skipped[0] != 0) & ~zero)


def _low_bytes(out: Output, at: int, rows: Rows) -> None:
    out.words(at, [bytes_word(rows[4 * k + j] for j in range(4)) for k in range(len(rows) // 4)])


def _sevens(signs: Rows, first: int, end: Vector) -> Vector:
    """Four times seven signs, and a scale above them."""
    word = end << 28
    for k in range(4):
        word = word | ((signs[first + k] & 127) << (7 * k))
    return word


def _nibbles(ends: Rows) -> list[Vector]:
    pairs = [ends[2 * j] | (ends[2 * j + 1] << 4) for j in range(len(ends) // 2)]
    return [bytes_word(pairs[k : k + 4]) for k in range(0, len(pairs), 4)]


def _high(points: Rows, bits: int) -> list[Vector]:
    """Bits 8 and up of the points, in bytes."""
    each = 32 // bits
    words = []
    for first in range(0, len(points), each):
        word = points.code.i32(0)
        for k in range(each):
            word = word | (((points[first + k] >> 8) & ((1 << bits) - 1)) << (bits * k))
        words.append(word)
    return words


def _write_iq3_xxs(code: Code, out: Output, points: Rows, signs: Rows, ends: Rows) -> None:
    _low_bytes(out, 2, points)
    out.words(66, [_sevens(signs, 4 * j, ends[j]) for j in range(8)])


def _write_iq3_s(code: Code, out: Output, points: Rows, signs: Rows, ends: Rows) -> None:
    _low_bytes(out, 2, points)
    out.words(66, _high(points, 1))
    _low_bytes(out, 74, signs)
    out.words(106, _nibbles(ends))


def _write_iq2_xxs(code: Code, out: Output, points: Rows, signs: Rows, ends: Rows) -> None:
    words = []
    for j in range(8):
        words += [bytes_word(points[4 * j + k] for k in range(4)), _sevens(signs, 4 * j, ends[j])]
    out.words(2, words)


def _write_iq2_xs(code: Code, out: Output, points: Rows, signs: Rows, ends: Rows) -> None:
    halves = [points[j] | ((signs[j] & 127) << 9) for j in range(32)]
    out.words(2, [halves[j] | (halves[j + 1] << 16) for j in range(0, 32, 2)])
    out.words(66, _nibbles(ends))


def _write_iq2_s(code: Code, out: Output, points: Rows, signs: Rows, ends: Rows) -> None:
    _low_bytes(out, 2, points)
    _low_bytes(out, 34, signs)
    out.words(66, _high(points, 2))
    out.words(74, _nibbles(ends))


_HOW = {
    "IQ3_S": _Type(False, 2, _SUBNORMAL, float(np.float32(1.033)), False, _write_iq3_s),
    "IQ3_XXS": _Type(True, 2, float(np.float32(1e-8)), float(np.float32(1.0125)), True, _write_iq3_xxs),
    "IQ2_S": _Type(False, 2, float(np.float32(1e-8)), float(np.float32(0.9875)), False, _write_iq2_s),
    "IQ2_XS": _Type(True, 1, float(np.float32(1e-15)), 1, True, _write_iq2_xs),
    "IQ2_XXS": _Type(True, 1, float(np.float32(1e-15)), 1, True, _write_iq2_xxs),
}


def emitters() -> list[Emitter]:
    """The kernels of this module."""
    every = []
    for kind, module in TYPES.items():
        for weighted in (False, True):
            if weighted or not getattr(module, "NEEDS_IMPORTANCE", False):
                name = f"{kind}_weighted" if weighted else kind
                body = _body(kind, _HOW[kind])
                every.append(Emitter(name, 256, module.LAYOUT.itemsize, body, weighted, POINTERS))
    return every


__all__ = ["POINTERS", "Snap", "emitters"]
