"""IQ4_NL and IQ4_XS, sixteen uneven values; TQ1_0 and TQ2_0, ternary codes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from edgekit_numba.kernels import Emitter, Weights
from edgekit_numba.layout import Output, bytes_word, planes
from edgekit_numba.rounding import nearest_int, round_away, to_half
from edgekit_numba.searches import EPSILON, peak_of, reciprocal, squares, weigh
from edgekit_numba.vectors import I32, Code, Rows, Vector, select

_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_TRIES = 7

_POWERS = (81, 27, 9, 3, 1)
_RUNS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))  # first element, bytes, digits


def _value(v: Vector) -> Vector:
    """The value nearest to half of v, as float32; no number counts as the last."""
    value = v.code.f32(_VALUES[0])
    for below, above in pairwise(_VALUES):
        value = value + select(v < below + above, v.code.f32(0), v.code.f32(above - below))
    return value


def _code(v: Vector) -> Vector:
    """Its number, as int32."""
    number = v.code.i32(0)
    for below, above in pairwise(_VALUES):
        number = number + (~(v < below + above)).ones()
    return number


def _search(code: Code, x: Rows, weights: Rows) -> Vector:
    """The scale of a block of uneven values, weighted."""
    peak = peak_of(code, x)
    zero = abs(peak) < EPSILON
    peak = select(zero, 1, peak)

    def sums(inverse: Vector) -> tuple[Vector, Vector]:
        sum_qx = sum_q2 = code.f32(0)
        twice = inverse * 2
        for v, w in zip(x, weights, strict=True):
            q = _value(v * twice)
            wq = w * q
            sum_qx, sum_q2 = sum_qx + wq * v, sum_q2 + wq * q
        return sum_qx, sum_q2

    sum_qx, sum_q2 = sums(1 / (-peak / _VALUES[0]))
    first = select(sum_q2 > 0, sum_qx / sum_q2, 0)
    scale, best = code.variable(first), code.variable(first * sum_qx)
    steps = np.arange(-_TRIES, _TRIES + 1, dtype=np.float32) + np.float32(_VALUES[0])
    with code.loop(len(steps)) as step:
        sum_qx, sum_q2 = sums(code.table(steps)[step] / peak)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best.get() * sum_q2)
        scale.set(sum_qx / sum_q2, better)
        best.set(scale.get() * sum_qx, better)
    return select(zero, 0, scale.get())


def _weights(x: Rows, importance: Rows | None, power: Vector | None, into: Rows) -> None:
    if importance is not None and power is not None:
        weigh(x, importance, power, into)
        return
    for j, v in enumerate(x):
        into[j] = v * v


def iq4_nl(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of IQ4_NL."""
    w, codes = code.rows(32), code.rows(32, I32)
    power = None if weights is None else squares(x) * (2 / 32)
    _weights(x, None if weights is None else weights.columns, power, w)
    d = _search(code, x, w)
    twice = reciprocal(d) * 2
    for j, v in enumerate(x):
        codes[j] = _code(v * twice)
    out.float16(0, to_half(d))
    planes(code, out, 2, codes, 1, 2, 4)
    return d.nonfinite()


def iq4_xs(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of IQ4_XS."""
    w, values, codes, stored = code.rows(32), code.rows(8), code.rows(256, I32), code.rows(8, I32)
    power = None if weights is None else squares(x) * (2 / 256)
    with code.loop(8) as sub:
        first = code.scaled(sub, 32)
        part = x.part(first, 32)
        _weights(part, None if weights is None else weights.columns.part(first, 32), power, w)
        values[sub] = _search(code, part, w)
    d = -peak_of(code, values) / 32
    inverse = reciprocal(d)
    with code.loop(8) as sub:
        scale = nearest_int(inverse * values[sub]).at_least(-32).at_most(31)
        stored[sub] = scale + 32
        twice = reciprocal(d * scale.to_float()) * 2
        part, into = x.part(code.scaled(sub, 32), 32), codes.part(code.scaled(sub, 32), 32)
        for j, v in enumerate(part):
            into[j] = _code(v * twice)
    high, low = code.i32(0), code.i32(0)
    for j, scale in enumerate(stored):
        high, low = high | ((scale >> 4) << (2 * j)), low | ((scale & 15) << (4 * j))
    out.float16(0, to_half(d))
    out.halves(2, high)
    out.words(4, [low])
    planes(code, out, 8, codes, 8, 2, 4)
    return d.nonfinite()


def _ternary(code: Code, x: Rows) -> tuple[Vector, Rows, Vector]:
    """The largest magnitude, codes 0 to 2, and where the codes are left to the reference."""
    largest, codes = code.variable(code.f32(0)), code.rows(256, I32)
    with code.loop(256) as j:
        magnitude = abs(x[j])
        largest.set(magnitude, magnitude > largest.get())
    d = largest.get()
    inverse = reciprocal(d)
    with code.loop(256) as j:
        codes[j] = round_away(x[j] * inverse) + 1
    return d, codes, inverse.nonfinite()


def tq1_0(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of TQ1_0."""
    d, codes, odd = _ternary(code, x)
    at = 0
    for start, width, digits in _RUNS:
        for first in range(0, width, 16):
            count = min(16, width - first)
            packed = [_five(codes, [start + n * width + first + j for n in range(digits)]) for j in range(count)]
            out.words(at, [bytes_word(packed[j : j + 4]) for j in range(0, count, 4)])
            at += count
    out.float16(52, to_half(d))
    return odd


def _five(codes: Rows, rows: list[int]) -> Vector:
    """Five ternary digits as ``ceil(256 / 243 * number)``."""
    number = codes.code.i32(0)
    for power, row in zip(_POWERS, rows, strict=False):
        number = number + codes[row] * power
    return (number * 256 + 242) * 69043 >> 24  # division by 243, exact for these


def tq2_0(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of TQ2_0."""
    d, codes, odd = _ternary(code, x)
    planes(code, out, 0, codes, 2, 4, 2)
    out.float16(64, to_half(d))
    return odd


def emitters() -> list[Emitter]:
    """The kernels of this module."""
    return [
        Emitter("IQ4_NL", 32, 18, iq4_nl),
        Emitter("IQ4_NL_weighted", 32, 18, iq4_nl, weighted=True),
        Emitter("IQ4_XS", 256, 136, iq4_xs),
        Emitter("IQ4_XS_weighted", 256, 136, iq4_xs, weighted=True),
        Emitter("TQ1_0", 256, 54, tq1_0),
        Emitter("TQ2_0", 256, 66, tq2_0),
    ]


__all__ = ["emitters", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0"]
