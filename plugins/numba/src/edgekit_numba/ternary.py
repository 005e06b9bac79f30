"""IQ1: groups of ternary codes on a grid, with shifted levels; see `edgekit.reference.ggml` for what each computes.

The elements of a sub-block are sorted by a network that exchanges pairs, which all lanes go through alike; numbers in
front of equal elements keep those in order. The search over the cuts then runs with a block in each lane.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
from llvmlite import ir

from edgekit_numba.grid_tables import TERNARY
from edgekit_numba.grids import POINTERS, Snap
from edgekit_numba.kernels import Emitter, Weights
from edgekit_numba.layout import Output, bytes_word
from edgekit_numba.rounding import nearest_int, to_half
from edgekit_numba.searches import squares, weigh
from edgekit_numba.vectors import I32, I64, Code, Rows, Variable, Vector, select

_GROUP = 8
_TOP = 7
_LEVELS = ((-0.875, 0.125, 1.125), (-1.125, -0.125, 0.875))
_LOWEST = -float(np.finfo(np.float32).max)


def network(count: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs that Batcher's odd-even merge sort compares; `count` is a power of two."""
    p = 1
    while p < count:
        k = p
        while k:
            for j in range(k % p, count - k, 2 * k):
                for i in range(j, min(j + k, count - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        yield i, i + k
            k //= 2
        p *= 2


@attrs.frozen
class _Sub:
    """Scratch memory of a sub-block: its elements and their weights as they come, and sorted, with their numbers."""

    x: Rows
    weights: Rows
    sorted: Rows
    heavy: Rows
    order: Rows
    codes: Rows

    @classmethod
    def of(cls, code: Code, x: Rows, weights: Rows) -> _Sub:
        """New memory for elements."""
        n = len(x)
        return cls(x, weights, code.rows(n), code.rows(n), code.rows(n, I32), code.rows(n, I32))

    def with_rows(self, x: Rows, weights: Rows) -> _Sub:
        """The same memory for other elements."""
        return attrs.evolve(self, x=x, weights=weights)

    def sort(self) -> None:
        """Sort the elements in ascending order; equal ones stay in order."""
        code = self.x.code
        for j, (v, w) in enumerate(zip(self.x, self.weights, strict=True)):  # a loop would become a call of memcpy
            self.sorted[j], self.heavy[j], self.order[j] = v, w, code.i32(j)
        pairs = np.array(list(network(len(self.x))), np.int32)
        firsts, seconds = code.table(pairs[:, 0]), code.table(pairs[:, 1])
        with code.loop(len(pairs)) as step:
            a, b = (code.builder.zext(table.scalar(step), I64) for table in (firsts, seconds))
            x, number = (self.sorted[a], self.sorted[b]), (self.order[a], self.order[b])
            swap = (x[1] < x[0]) | ((x[1] == x[0]) & (number[1] < number[0]))
            for rows in (self.sorted, self.heavy, self.order):
                low, high = rows[a], rows[b]
                rows[a], rows[b] = select(swap, high, low), select(swap, low, high)


@attrs.frozen
class _Cut:
    """The best cut so far: its scale and score, and its two places and its shift in one number; -1 for none."""

    scale: Variable
    score: Variable
    number: Variable

    @classmethod
    def none(cls, code: Code) -> _Cut:
        """No cut."""
        return cls(code.variable(code.f32(0)), code.variable(code.f32(_LOWEST)), code.variable(code.i32(-1)))

    def consider(self, first: Any, second: Any, sums: Sequence[tuple[Vector, Vector]]) -> None:
        """Take a cut where it is better, with the sums of weight * level * x and of weight * level² under each shift.

        What is no better than the best cut so far is no better than one that is better still.
        """
        code, score = sums[0][0].code, self.score.get()
        some = [(sum_q2 > 0) & (sum_qx * sum_qx > score * sum_q2) for sum_qx, sum_q2 in sums]
        with code.where_any(functools.reduce(lambda a, b: a | b, some)):
            places = code.builder.or_(first, code.builder.shl(second, ir.Constant(I64, 8)))
            number = code.broadcast(code.builder.trunc(places, I32))
            for shift, (sum_qx, sum_q2) in enumerate(sums):
                better = (sum_q2 > 0) & (sum_qx * sum_qx > self.score.get() * sum_q2)
                scale = sum_qx / sum_q2
                self.scale.set(scale, better)
                self.score.set(scale * sum_qx, better)
                self.number.set(number | (shift << 16), better)


def _search_small(code: Code, sub: _Sub, cut: _Cut) -> None:
    """The cuts of IQ1_S: one shift for all groups."""
    n = len(sub.x)
    sum_x, sum_w = _beginnings(code, sub, lambda j: None)
    before, after = [[(code.rows(n + 1), code.rows(n + 1)) for _ in _LEVELS] for _ in range(2)]
    with code.loop(n + 1) as k:
        x, w = sum_x[k], sum_w[k]
        rest_x, rest_w = sum_x[n] - x, sum_w[n] - w
        for shift, (low, _, high) in enumerate(_LEVELS):
            lower, upper = before[shift], after[shift]
            lower[0][k], lower[1][k] = x * low, w * low * low
            upper[0][k], upper[1][k] = rest_x * high, rest_w * high * high
    with code.loop(n + 1) as first:
        x, w = sum_x[first], sum_w[first]
        begun = [(rows[0][first], rows[1][first]) for rows in before]
        with code.loop(n + 1, first) as second:
            between_x, between_w = sum_x[second] - x, sum_w[second] - w
            sums = []
            for shift, (_, middle, _) in enumerate(_LEVELS):
                sum_qx = begun[shift][0] + between_x * middle + after[shift][0][second]
                sum_q2 = begun[shift][1] + between_w * middle * middle + after[shift][1][second]
                sums.append((sum_qx, sum_q2))
            cut.consider(first, second, sums)


def _search_medium(code: Code, sub: _Sub, cut: _Cut) -> None:
    """The cuts of IQ1_M: a shift for each of the two groups, and sums over the elements of each."""
    n = len(sub.x)

    def in_first(j: Any) -> Vector:
        return sub.order[j] < _GROUP

    halves = [_beginnings(code, sub, in_first), _beginnings(code, sub, lambda j: ~in_first(j))]
    low_rows, high_rows = [[[code.rows(n + 1) for _ in _LEVELS] for _ in range(2)] for _ in range(2)]
    tops: list[list[Vector]] = []
    for h, (sum_x, sum_w) in enumerate(halves):
        tops.append([])
        for shift, (low, middle, high) in enumerate(_LEVELS):
            tops[h].append(sum_x[n] * high)
            whole = sum_w[n] * high * high
            with code.loop(n + 1) as k:
                low_rows[h][shift][k] = whole + sum_w[k] * (low * low - middle * middle)
                high_rows[h][shift][k] = sum_w[k] * (middle * middle - high * high)
    with code.loop(n + 1) as first:
        begun_x = [sum_x[first] for sum_x, _ in halves]
        begun_w = [[rows[first] for rows in of_half] for of_half in low_rows]
        with code.loop(n + 1, first) as second:
            both = [begun_x[h] + halves[h][0][second] for h in range(2)]
            qx = [[tops[h][s] - both[h] for s in range(2)] for h in range(2)]
            q2 = [[begun_w[h][s] + high_rows[h][s][second] for s in range(2)] for h in range(2)]
            pairs = [(a, b) for a in range(2) for b in range(2)]
            cut.consider(first, second, [(qx[0][a] + qx[1][b], q2[0][a] + q2[1][b]) for a, b in pairs])


def _beginnings(code: Code, sub: _Sub, chosen: Callable[[Any], Vector | None]) -> tuple[Rows, Rows]:
    """The sums of weight * x and of the weights of the first k sorted elements that are chosen, for every k."""
    n = len(sub.x)
    sum_x, sum_w = code.rows(n + 1), code.rows(n + 1)
    sum_x[0] = sum_w[0] = code.f32(0)
    with code.loop(n) as j:
        w = sub.heavy[j]
        x, mask, after = w * sub.sorted[j], chosen(j), code.builder.add(j, code.index(1))
        if mask is not None:
            x, w = select(mask, x, 0), select(mask, w, 0)
        sum_x[after], sum_w[after] = sum_x[j] + x, sum_w[j] + w
    return sum_x, sum_w


def _codes(code: Code, sub: _Sub, cut: _Cut) -> None:
    """Write the codes of the best cut at the elements' own places, inverted where its scale is negative."""
    number, inverted = cut.number.get(), cut.scale.get() < 0
    first, second = number & 0xFF, (number >> 8) & 0xFF
    ranked = code.rows(1, I32)
    with code.loop(len(sub.x)) as rank:
        after = code.broadcast(code.builder.trunc(rank, I32)) + 1
        q = (first < after).ones() + (second < after).ones()
        ranked[0] = select(inverted, 2 - q, q)
        with code.loop(code.lanes) as lane:
            place = code.builder.zext(sub.order.lane(rank, lane), I64)
            sub.codes.set_lane(place, lane, ranked.lane(0, lane))


@attrs.frozen
class _Groups:
    """The groups of a sub-block: their places on the grid, where they were off it, and the shift of their levels."""

    places: Rows
    off: Rows
    deltas: Rows
    scale: Rows

    @classmethod
    def of(cls, code: Code, count: int) -> _Groups:
        """New memory."""
        return cls(code.rows(count, I32), code.rows(count, I32), code.rows(count), code.rows(1))

    def level(self, group: Any, k: int) -> Vector:
        """The level of element k of a group."""
        return (((self.places[group] >> (2 * k)) & 3) - 1).to_float() + self.deltas[group]


def _onto_grid(code: Code, snap: Snap, sub: _Sub, groups: _Groups, known: Vector, scale: Vector, origin: int) -> Vector:
    """Move groups onto the grid; gives the scale, fitted again where one was off it."""
    with code.loop(len(groups.places)) as group:
        place = code.i32(0)
        for k in range(_GROUP):
            place = place | (sub.codes[code.scaled(group, _GROUP, k)] << (2 * k))
        groups.places[group] = select(known, place, origin)
    groups.scale[0] = scale
    snap.move(groups.places, groups.off, sub.x, sub.weights, groups.scale, groups.deltas)
    sum_qx, sum_q2 = code.variable(code.f32(0)), code.variable(code.f32(0))
    off = code.variable(code.i32(0))
    with code.loop(len(groups.places)) as group:
        off.set(off.get() | groups.off[group])
        qx, q2 = sum_qx.get(), sum_q2.get()
        for k in range(_GROUP):
            row, level = code.scaled(group, _GROUP, k), groups.level(group, k)
            weighted = sub.weights[row] * level
            qx, q2 = qx + weighted * sub.x[row], q2 + weighted * level
        sum_qx.set(qx)
        sum_q2.set(q2)
    again = (off.get() != 0) & (sum_qx.get() > 0) & (sum_q2.get() > 0)
    return select(again, sum_qx.get() / sum_q2.get(), scale)


@attrs.frozen
class _Block:
    """Of a block: its groups' points and shifts, the scales of its sub-blocks, and every element's weight and level."""

    points: Rows
    shifts: Rows
    scales: Rows
    weights: Rows
    levels: Rows
    odd: Rows

    @classmethod
    def of(cls, code: Code, subs: int) -> _Block:
        """New memory."""
        made = cls(
            code.rows(32, I32), code.rows(32, I32), code.rows(subs), code.rows(256), code.rows(256), code.rows(1, I32)
        )
        made.odd[0] = code.i32(0)
        return made


@attrs.frozen
class _Type:
    """What differs between the two types: size of a sub-block, the least magnitude, the search, and what is written."""

    size: int
    epsilon: float
    search: Callable[[Code, _Sub, _Cut], None]
    shifts: int
    write: Callable[[Code, Output, Rows, _Block], Vector]


def _body(kind: str, how: _Type) -> Callable[..., Vector]:
    points = TERNARY[kind].points()
    origin = int((points.codes[0].astype(np.int64) << 2 * np.arange(_GROUP)).sum())

    def body(code: Code, x: Rows, out: Output, weights: Weights | None, pointers: Sequence[Any]) -> Vector:
        snap, block = Snap(code, _GROUP, pointers), _Block.of(code, 256 // how.size)
        sub = _Sub.of(code, x.part(0, how.size), block.weights.part(0, how.size))
        groups = _Groups.of(code, how.size // _GROUP)
        power = squares(x) * 2 / 256 if weights is not None else None
        with code.loop(256 // how.size) as number:
            first = code.scaled(number, how.size)
            here = sub.with_rows(x.part(first, how.size), block.weights.part(first, how.size))
            if weights is None or power is None:
                for j, v in enumerate(here.x):
                    here.weights[j] = v * v
            else:
                weigh(here.x, weights.columns.part(first, how.size), power, here.weights)
            _sub_block(code, how, snap, here, groups, block, number, origin)
        return (block.odd[0] | snap.lost[0] != 0) | how.write(code, out, x, block)

    return body


def _sub_block(
    code: Code, how: _Type, snap: Snap, sub: _Sub, groups: _Groups, block: _Block, number: Any, origin: int
) -> None:
    count = len(groups.places)
    sub.sort()
    cut = _Cut.none(code)
    how.search(code, sub, cut)
    ends = abs(sub.sorted[0]), abs(sub.sorted[len(sub.x) - 1])
    known = (cut.number.get() > -1) & ~(select(ends[0] > ends[1], ends[0], ends[1]) < how.epsilon)
    scale = cut.scale.get()
    shift = cut.number.get() >> 16
    shift = select(known, select(scale < 0, how.shifts - 1 - shift, shift), 0)
    scale = abs(scale)
    for group in range(count):
        shifted = shift if how.shifts == 2 else (shift >> 1 if not group else shift & 1)
        groups.deltas[group] = select(shifted == 1, code.f32(-0.125), code.f32(0.125))
        block.shifts[code.scaled(number, count, group)] = shifted
    _codes(code, sub, cut)
    scale = _onto_grid(code, snap, sub, groups, known, scale, origin)
    block.odd[0] = block.odd[0] | (known & (scale != scale)).ones()
    block.scales[number] = select(known, scale, 0)
    for group in range(count):
        snap.point(groups.places, group, block.points, code.scaled(number, count, group))
        for k in range(_GROUP):
            row = code.scaled(number, len(sub.x), _GROUP * group + k)
            block.levels[row] = groups.level(group, k)


def _ends(code: Code, block: _Block) -> tuple[Vector, Vector, Rows]:
    """The scale d, where it is not zero, and the codes of the scales of the sub-blocks."""
    largest = code.f32(0)
    for scale in block.scales:
        largest = select(largest > scale, largest, scale)
    some, d = largest != 0, largest / 15
    inverse, ends = 1 / d, code.rows(len(block.scales), I32)
    for j, scale in enumerate(block.scales):
        end = nearest_int((inverse * scale - 1) * 0.5).at_most(_TOP).at_least(0)
        ends[j] = select(some, end, 0)
    return d, some, ends


def _low_bytes(out: Output, at: int, rows: Rows) -> None:
    out.words(at, [bytes_word(rows[4 * k + j] for j in range(4)) for k in range(len(rows) // 4)])


def _write_small(code: Code, out: Output, x: Rows, block: _Block) -> Vector:
    d, some, ends = _ends(code, block)
    stored = d * 1.125
    out.float16(0, select(some, to_half(stored), 0))
    _low_bytes(out, 2, block.points)
    halves = []
    for j in range(8):
        half = select(some, (ends[j] | (block.shifts[4 * j] << 3)) << 12, 0)
        for k in range(4):
            half = half | ((block.points[4 * j + k] >> 8) << (3 * k))
        halves.append(half)
    out.words(34, [halves[j] | (halves[j + 1] << 16) for j in range(0, 8, 2)])
    return some & stored.nonfinite()


def _write_medium(code: Code, out: Output, x: Rows, block: _Block) -> Vector:
    d, some, ends = _ends(code, block)
    sum_qx, sum_q2 = code.variable(code.f32(0)), code.variable(code.f32(0))
    with code.loop(len(ends)) as number:
        qx, q2, factor = sum_qx.get(), sum_q2.get(), (ends[number] * 2 + 1).to_float()
        for k in range(256 // len(ends)):
            row = code.scaled(number, 256 // len(ends), k)
            level = block.levels[row] * factor
            weighted = block.weights[row] * level
            qx, q2 = qx + weighted * x[row], q2 + weighted * level
        sum_qx.set(qx)
        sum_q2.set(q2)
    stored = select(sum_q2.get() > 0, sum_qx.get() / sum_q2.get(), d) * float(np.float32(1.1125))
    half = select(some, to_half(stored), 0)
    out.flag(half)
    _low_bytes(out, 0, block.points)
    for j in range(32):
        high = (block.points[j] >> 8) | (select(some, block.shifts[j], 0) << 3)
        block.shifts[j] = high
    pairs = [block.shifts[2 * j] | (block.shifts[2 * j + 1] << 4) for j in range(16)]
    out.words(32, [bytes_word(pairs[k : k + 4]) for k in range(0, 16, 4)])
    quarters = []
    for j in range(4):
        word = ((half >> (4 * j)) & 15) << 12
        for k in range(4):
            word = word | (ends[4 * j + k] << (3 * k))
        quarters.append(word)
    out.words(48, [quarters[0] | (quarters[1] << 16), quarters[2] | (quarters[3] << 16)])
    return some & stored.nonfinite()


_HOW = {
    "IQ1_S": _Type(32, float(np.float32(1e-12)), _search_small, 2, _write_small),
    "IQ1_M": _Type(16, float(np.float32(1e-7)), _search_medium, 4, _write_medium),
}


def emitters() -> list[Emitter]:
    """The kernels of this module."""
    every = []
    for kind, module in TERNARY.items():
        for weighted in (False, True):
            if weighted or not getattr(module, "NEEDS_IMPORTANCE", False):
                name = f"{kind}_weighted" if weighted else kind
                every.append(Emitter(name, 256, module.LAYOUT.itemsize, _body(kind, _HOW[kind]), weighted, POINTERS))
    return every


__all__ = ["emitters", "network"]
