"""ggml's searches for the scale of a block, each block a lane.

Every function here is the search of one block, written as C has it; see `edgekit.reference.ggml` for what each
computes and where it comes from. None keeps the codes of its best try: the inverse scale and the origin that won
give them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit_numba.rounding import nearest_int, round_clip
from edgekit_numba.vectors import Code, Rows, Vector, select

F32 = npt.NDArray[np.float32]

EPSILON = float(np.float32(1e-15))  # a block with no larger magnitude counts as zero
_TENTH = np.float32(0.1)


def affine_steps(first: float, step: float, tries: int, top: int) -> F32:
    """How many steps to divide the range into: ``first + step * i + top`` for i = 0 to `tries`, in float32."""
    return np.float32(first) + np.float32(step) * np.arange(tries + 1, dtype=np.float32) + np.float32(top)


def squares(x: Rows) -> Vector:
    """The sum of x²."""
    total = x.code.variable(x.code.f32(0))
    with x.code.loop(len(x)) as j:
        total.set(total.get() + x[j] * x[j])
    return total.get()


def weigh(x: Rows, importance: Rows, power: Vector, into: Rows) -> Vector:
    """The weights of squared errors under an importance matrix, ``importance * sqrt(power + x²)``; gives their sum."""
    total = x.code.f32(0)
    for j, (v, q) in enumerate(zip(x, importance, strict=True)):
        w = into[j] = q * (power + v * v).sqrt()
        total = total + w
    return total


def reciprocal(d: Vector) -> Vector:
    """``d ? 1 / d : 0``; infinite where d is subnormal."""
    return select(d != 0, 1 / d, 0)


class Affine(NamedTuple):
    """x is about ``scale * code + minimum``, with ``code = clip(nearest_int(inverse * (x - origin)), 0, top)``."""

    scale: Vector
    minimum: Vector
    inverse: Vector
    origin: Vector

    def code(self, x: Vector, top: int) -> Vector:
        """The code of an element, as float32."""
        return round_clip((x - self.origin) * self.inverse, 0, top)


def affine(code: Code, x: Rows, weights: Rows, top: int, steps: F32, absolute: bool = False) -> Affine:
    """Search scale and minimum (``make_qkx2_quants``, ``make_qkx3_quants``).

    Args:
        code: where to write.
        x: the elements.
        weights: of the squared errors, or of the `absolute` ones.
        top: the largest code.
        steps: how many steps the range is divided into, one number a try.
        absolute: weigh absolute errors.
    """
    low = high = x[0]
    sum_w = sum_x = code.f32(0)
    for v, w in zip(x, weights, strict=True):
        low, high = select(v < low, v, low), select(v > high, v, high)
        sum_w, sum_x = sum_w + w, sum_x + w * v
    low = select(low > 0, 0, low)
    codes = code.rows(len(x))

    def error(scale: Vector, minimum: Vector) -> Vector:
        total = code.f32(0)
        for q, v, w in zip(codes, x, weights, strict=True):
            difference = scale * q + minimum - v
            total = total + w * (abs(difference) if absolute else difference * difference)
        return total

    inverse = top / (high - low)
    for j, v in enumerate(x):
        codes[j] = round_clip((v - low) * inverse, 0, top)
    best = [code.variable(v) for v in (1 / inverse, low, inverse, low)]
    least = code.variable(error(best[0].get(), low))
    with code.loop(len(steps)) as step:
        origin = best[1].get()  # an accepted candidate moves the origin of all later ones
        inverse = code.table(steps)[step] / (high - origin)
        sum_l = sum_l2 = sum_xl = code.f32(0)
        for j, (v, w) in enumerate(zip(x, weights, strict=True)):
            q = codes[j] = round_clip((v - origin) * inverse, 0, top)
            wl = w * q
            sum_l, sum_l2, sum_xl = sum_l + wl, sum_l2 + wl * q, sum_xl + wl * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        scale = select(minimum > 0, sum_xl / sum_l2, scale)
        minimum = select(minimum > 0, 0, minimum)
        squared_error = error(scale, minimum)
        better = (determinant > 0) & (squared_error < least.get())
        least.set(squared_error, better)
        for current, candidate in zip(best, (scale, minimum, inverse, origin), strict=True):
            current.set(candidate, better)
    scale, minimum, inverse, origin = (current.get() for current in best)
    return Affine(select(high == low, 0, scale), minimum, inverse, origin)


class Symmetric(NamedTuple):
    """x is about ``scale * code``, with ``code = clip(nearest_int(inverse * x), -top, top - 1)``.

    Where `zero` is set every element counts as zero, and the code is -top.
    """

    scale: Vector
    inverse: Vector
    zero: Vector

    def code(self, x: Vector, top: int) -> Vector:
        """The code of an element, as float32."""
        return select(self.zero, -top, round_clip(x * self.inverse, -top, top - 1))


def peak_of(code: Code, x: Rows | Sequence[Vector]) -> Vector:
    """The element of largest magnitude with its sign, of equal ones the first; 0 where there is none above 0."""
    peak = largest = code.f32(0)
    for v in x:
        greater = abs(v) > largest
        peak, largest = select(greater, v, peak), select(greater, abs(v), largest)
    return peak


def symmetric(code: Code, x: Rows, weights: Rows, top: int) -> Symmetric:
    """Search the scale (``make_qx_quants`` with a weight for each element)."""
    peak = peak_of(code, x)
    zero = abs(peak) < EPSILON
    peak = select(zero, 1, peak)

    def sums(inverse: Vector) -> tuple[Vector, Vector]:
        sum_lx = sum_l2 = code.f32(0)
        for v, w in zip(x, weights, strict=True):
            q = round_clip(v * inverse, -top, top - 1)
            sum_lx, sum_l2 = sum_lx + w * v * q, sum_l2 + w * q * q
        return sum_lx, sum_l2

    inverse = -top / peak
    sum_lx, sum_l2 = sums(inverse)
    first = select(sum_l2 != 0, sum_lx / sum_l2, 0)
    scale, best, best_inverse = (code.variable(v) for v in (first, first * sum_lx, inverse))
    steps = -(np.float32(top) + _TENTH * np.array([*range(-9, 0), *range(1, 10)], np.float32))
    with code.loop(len(steps)) as step:
        inverse = code.table(steps)[step] / peak
        sum_lx, sum_l2 = sums(inverse)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best.get() * sum_l2)
        scale.set(sum_lx / sum_l2, better)
        best.set(scale.get() * sum_lx, better)
        best_inverse.set(inverse, better)
    return Symmetric(select(zero, 0, scale.get()), best_inverse.get(), zero)


def descent(code: Code, x: Rows, codes: Rows, top: int, rounds: int = 5) -> Vector:
    """Coordinate descent on the codes with weights x² (``make_q3_quants``); gives the scale.

    Args:
        code: where to write.
        x: the elements.
        codes: where the codes go, -top to top - 1 as float32; -top where everything is zero.
        top: see above.
        rounds: at most so many passes.
    """
    peak = peak_of(code, x)
    zero = abs(peak) < EPSILON
    peak = select(zero, 1, peak)
    inverse = -top / peak
    sum_lx = sum_l2 = code.f32(0)
    for j, v in enumerate(x):
        q = codes[j] = round_clip(v * inverse, -top, top - 1)
        w = v * v
        sum_lx, sum_l2 = sum_lx + w * v * q, sum_l2 + w * q * q
    lx, l2 = code.variable(sum_lx), code.variable(sum_l2)
    with code.rounds(rounds) as changed:
        for j, v in enumerate(x):
            q, w = codes[j], v * v
            slx, sl2 = lx.get() - w * v * q, l2.get() - w * q * q
            moved = round_clip(v * sl2 / slx, -top, top - 1)
            worth = (moved != q) & (slx > 0)
            slx, sl2 = slx + w * v * moved, sl2 + w * moved * moved
            better = worth & (sl2 > 0) & (slx * slx * l2.get() > lx.get() * lx.get() * sl2)
            codes[j] = select(better, moved, q)
            lx.set(slx, better)
            l2.set(sl2, better)
            changed.set(changed.get() | better)
    for j, q in enumerate(codes):
        codes[j] = select(zero, -top, q)
    return select(zero | ~(l2.get() > 0), 0, lx.get() / l2.get())


def positive(code: Code, x: Rows, weights: Rows, codes: Rows, top: int, rounds: int = 5) -> Vector:
    """Search the scale of scales (``make_qp_quants``); gives it.

    Args:
        code: where to write.
        x: the scales of the sub-blocks; negative ones have codes that wrap.
        weights: of the squared errors.
        codes: where the codes go, 0 to `top` as int32.
        top: the largest code.
        rounds: at most so many passes of coordinate descent.
    """
    peak = code.f32(0)
    for v in x:
        peak = select(peak > v, peak, v)  # C's MAX
    zero = peak < EPSILON
    inverse = top / peak

    def error(inverse: Vector, wrapped: bool) -> Vector:
        total, scale = code.f32(0), 1 / inverse
        for v, w in zip(x, weights, strict=True):
            q = nearest_int(inverse * v)
            difference = v - scale * (q & 0xFF if wrapped else q.at_most(top)).to_float()
            total = total + w * difference * difference
        return total

    least, best_inverse = code.variable(error(inverse, True)), code.variable(inverse)
    steps = _TENTH * np.array([-4, -3, -2, -1, 1, 2, 3, 4], np.float32) + np.float32(top)
    with code.loop(len(steps)) as step:
        candidate = code.table(steps)[step] / peak
        squared_error = error(candidate, False)
        better = squared_error < least.get()
        best_inverse.set(candidate, better)
        least.set(squared_error, better)
    sum_lx = sum_l2 = code.f32(0)
    for j, (v, w) in enumerate(zip(x, weights, strict=True)):
        q = nearest_int(best_inverse.get() * v).at_most(top)
        codes[j] = q & 0xFF  # stored as uint8
        sum_lx, sum_l2 = sum_lx + w * v * q.to_float(), sum_l2 + w * q.to_float() * q.to_float()
    lx, l2 = code.variable(sum_lx), code.variable(sum_l2)
    with code.rounds(rounds) as changed:
        for j, (v, w) in enumerate(zip(x, weights, strict=True)):
            q = codes[j].to_float()
            slx, sl2 = lx.get() - w * v * q, l2.get() - w * q * q
            moved = nearest_int(v * sl2 / slx).at_most(top)
            worth = (slx > 0) & (sl2 > 0) & (moved != codes[j])
            m = moved.to_float()
            slx, sl2 = slx + w * v * m, sl2 + w * m * m
            better = worth & (slx * slx * l2.get() > lx.get() * lx.get() * sl2)
            codes[j] = select(better, moved & 0xFF, codes[j])
            lx.set(slx, better)
            l2.set(sl2, better)
            changed.set(changed.get() | better)
    for j, q in enumerate(codes):
        codes[j] = select(zero, 0, q)
    return select(zero | ~(l2.get() > 0), 0, lx.get() / l2.get())


__all__ = [
    "EPSILON",
    "F32",
    "Affine",
    "Symmetric",
    "affine",
    "affine_steps",
    "descent",
    "peak_of",
    "positive",
    "reciprocal",
    "squares",
    "symmetric",
    "weigh",
]
