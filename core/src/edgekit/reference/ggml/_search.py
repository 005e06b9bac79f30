"""ggml's searches for the scale of a block.

Each tries a fixed list of inverse scales, rounds the block to codes with each, fits the scale to those codes by
weighted least squares, and keeps the best. Everything works on columns [n, blocks], so that all blocks advance
together and every sum runs over axis 0: sequential float32 additions, as in C; pairwise sums change the codes.

The searches return what reproduces their codes rather than the codes: ggml computes the codes anew from the
stored scale, except where that scale came out as zero.

Source: ``make_qkx2_quants``, ``make_qkx3_quants``, ``make_qx_quants``, ``make_q3_quants`` and ``make_qp_quants``
in ggml 0.25.3, ``ggml-quants.c``.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from edgekit.reference._rounding import nearest_int
from edgekit.reference.ggml._codes import first_minimum, round_clip, signed_peak
from edgekit.reference.ggml._layout import F32

I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

EPSILON = np.float32(1e-15)  # GROUP_MAX_EPS: a block with no larger magnitude counts as zero


def total(v: F32) -> F32:
    """The sum over axis 0, one float32 addition after the other, from +0."""
    return cast(F32, np.add.reduce(v, axis=0, initial=np.float32(0)))


class Affine(NamedTuple):
    """x is about ``scale * code + minimum``, with ``code = clip(nearest_int(inverse * (x - origin)), 0, top)``."""

    scale: F32
    minimum: F32
    inverse: F32
    origin: F32


def affine_codes(x: F32, inverse: F32, origin: F32, top: int, out: F32 | None = None) -> F32:
    """``clip(nearest_int(inverse * (x - origin)), 0, top)`` as float32 columns."""
    out = np.subtract(x, origin, out=out)
    out *= inverse
    return round_clip(out, 0, top)


def affine(x: F32, weights: F32, top: int, steps: F32, absolute: bool = False) -> Affine:
    """Search scale and minimum (``make_qkx2_quants``, ``make_qkx3_quants``).

    Args:
        x: columns [n, blocks].
        weights: of the squared errors, [n, blocks].
        top: the largest code.
        steps: how many steps the range is divided into, one number a try.
        absolute: weigh absolute errors instead of squared ones.
    """
    high = x.max(axis=0)
    low = first_minimum(x.T, x.min(axis=0))
    low[low > 0] = 0
    flat = high == low
    sum_w, sum_x = total(weights), total(weights * x)
    codes, scratch = np.empty_like(x), np.empty_like(x)

    def error_of(scale: F32, minimum: F32) -> F32:
        np.multiply(codes, scale, out=scratch)
        np.add(scratch, minimum, out=scratch)
        np.subtract(scratch, x, out=scratch)
        (np.abs if absolute else np.square)(scratch, out=scratch)
        return total(np.multiply(scratch, weights, out=scratch))

    inverse = np.float32(top) / _span(high, low, flat)
    best = Affine(np.float32(1) / inverse, low, inverse, low)
    affine_codes(x, inverse, low, top, codes)
    least = error_of(best.scale, low)
    for step in steps:
        origin = best.minimum  # an accepted candidate moves the origin of all later ones
        inverse = step / _span(high, origin, flat)
        affine_codes(x, inverse, origin, top, codes)
        sum_l = total(np.multiply(codes, weights, out=scratch))
        sum_xl = total(scratch * x)
        sum_l2 = total(np.multiply(scratch, codes, out=scratch))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant)
        minimum = np.divide(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = minimum > 0
        minimum = np.where(positive, np.float32(0), minimum)
        scale = np.where(positive, sum_xl / sum_l2, scale)
        error = error_of(scale, minimum)
        better = (determinant > 0) & (error < least)
        least = np.where(better, error, least)
        best = _chosen(better, Affine(scale, minimum, inverse, origin), best)
    return best._replace(scale=np.where(flat, np.float32(0), best.scale))


def affine_steps(first: float, step: float, tries: int, top: int) -> F32:
    """How many steps to divide the range into: ``first + step * i + top`` for i = 0 to `tries`, in float32."""
    return np.float32(first) + np.float32(step) * np.arange(tries + 1, dtype=np.float32) + np.float32(top)


def _span(high: F32, low: F32, flat: Mask) -> F32:
    """The range; 1 where the block is flat, so that its codes are a tame 0."""
    return np.where(flat, np.float32(1), high - low)


def _chosen(mask: Mask, new: Affine, old: Affine) -> Affine:
    return Affine(*(np.where(mask, a, b) for a, b in zip(new, old, strict=True)))


class Symmetric(NamedTuple):
    """x is about ``scale * code``, with ``code = clip(nearest_int(inverse * x), -top, top - 1)``.

    Where `zero` is set every element counts as zero, and the code is -top.
    """

    scale: F32
    inverse: F32
    zero: Mask


def symmetric_codes(x: F32, inverse: F32, top: int, out: F32 | None = None) -> F32:
    """``clip(nearest_int(inverse * x), -top, top - 1)`` as float32 columns."""
    return round_clip(np.multiply(x, inverse, out=out), -top, top - 1)


def peak_and_zero(x: F32) -> tuple[F32, Mask]:
    """The signed element of largest magnitude of each column, and where it counts as zero. NaN is passed over."""
    peak = first_peak(x.T)
    zero = np.abs(peak) < EPSILON
    return np.where(zero, np.float32(1), peak), zero


def symmetric(x: F32, weights: F32, top: int) -> Symmetric:
    """Search the scale (``make_qx_quants`` with a weight for each element).

    Args:
        x: columns [n, blocks]; may hold NaN.
        weights: of the squared errors, [n, blocks].
        top: codes run from ``-top`` to ``top - 1``.
    """
    peak, zero = peak_and_zero(x)
    weighted = weights * x
    codes, scratch = np.empty_like(x), np.empty_like(x)

    def fit(inverse: F32) -> tuple[F32, F32]:
        symmetric_codes(x, inverse, top, codes)
        sum_lx = total(np.multiply(weighted, codes, out=scratch))
        np.multiply(weights, codes, out=scratch)
        return sum_lx, total(np.multiply(scratch, codes, out=scratch))

    inverse = np.float32(-top) / peak
    sum_lx, sum_l2 = fit(inverse)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for step in np.float32(0.1) * np.array([*range(-9, 0), *range(1, 10)], np.float32):
        candidate = -(np.float32(top) + step) / peak
        sum_lx, sum_l2 = fit(candidate)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
        inverse = np.where(better, candidate, inverse)
    return Symmetric(np.where(zero, np.float32(0), scale), inverse, zero)


class Descent(NamedTuple):
    """x is about ``scale * code``, codes -top to top - 1 as float32 columns; -top where everything is zero."""

    scale: F32
    codes: F32


def descent(x: F32, top: int, rounds: int = 5) -> Descent:
    """Coordinate descent on the codes, with weights x² (``make_q3_quants``).

    Args:
        x: columns [n, blocks].
        top: codes run from ``-top`` to ``top - 1``.
        rounds: at most so many passes over a block; a block that no pass changes is done.
    """
    peak, zero = peak_and_zero(x)
    codes = symmetric_codes(x, np.float32(-top) / peak, top)
    weights = x * x
    weighted = weights * x
    sum_lx = total(weighted * codes)
    sum_l2 = total(weights * codes * codes)
    for _ in range(rounds):
        changed = False
        for i in range(x.shape[0]):
            changed |= _improve(x[i], weights[i], weighted[i], codes[i], sum_lx, sum_l2, top)
        if not changed:
            break
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, np.float32(0))
    return Descent(np.where(zero, np.float32(0), scale), np.where(zero, np.float32(-top), codes))


def _improve(x: F32, w: F32, wx: F32, codes: F32, sum_lx: F32, sum_l2: F32, top: int) -> bool:
    """Move one element's code where that improves the fit; all arguments [blocks], the last three written to."""
    slx = sum_lx - wx * codes
    sl2 = sum_l2 - w * codes * codes
    moved = round_clip(np.divide(x * sl2, slx), -top, top - 1)
    at = np.flatnonzero((slx > 0) & (moved != codes))
    if not at.size:
        return False
    moved, old_lx, old_l2 = moved[at], sum_lx[at], sum_l2[at]
    slx = slx[at] + wx[at] * moved
    sl2 = sl2[at] + w[at] * moved * moved
    better = (sl2 > 0) & (slx * slx * old_l2 > old_lx * old_lx * sl2)
    at = at[better]
    codes[at], sum_lx[at], sum_l2[at] = moved[better], slx[better], sl2[better]
    return bool(at.size)


class Positive(NamedTuple):
    """x is about ``scale * code``, codes as uint8 columns."""

    scale: F32
    codes: npt.NDArray[np.uint8]


def positive(x: F32, weights: F32, top: int, rounds: int = 5) -> Positive:
    """Search the scale of scales (``make_qp_quants``); codes 0 to `top`, unless x is negative: those wrap.

    Args:
        x: columns [n, blocks]; may hold NaN.
        weights: of the squared errors, [n, blocks].
        top: the largest code.
        rounds: at most so many passes of coordinate descent.
    """
    peak = np.zeros_like(x[0])
    for row in x:
        peak = np.where(peak > row, peak, row)  # C's MAX: a NaN is taken, and replaced by the next
    zero = peak < EPSILON
    inverse = np.float32(top) / peak
    least = _squared_error(x, weights, inverse, nearest_int(inverse * x).astype(np.uint8))
    for step in np.float32(0.1) * np.array([-4, -3, -2, -1, 1, 2, 3, 4], np.float32):
        candidate = (step + np.float32(top)) / peak
        error = _squared_error(x, weights, candidate, np.minimum(nearest_int(candidate * x), top))
        inverse = np.where(error < least, candidate, inverse)
        least = np.where(error < least, error, least)
    codes = np.minimum(nearest_int(inverse * x), top)
    weighted = weights * x
    sum_lx, sum_l2 = total(weighted * codes.astype(np.float32)), total(_times_square(weights, codes))
    codes = codes & 0xFF  # stored as uint8
    for _ in range(rounds):
        changed = False
        for i in range(x.shape[0]):
            changed |= _improve_positive(x[i], weights[i], weighted[i], codes[i], sum_lx, sum_l2, top)
        if not changed:
            break
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, np.float32(0))
    return Positive(np.where(zero, np.float32(0), scale), np.where(zero, np.uint8(0), codes.astype(np.uint8)))


def _squared_error(x: F32, weights: F32, inverse: F32, codes: npt.NDArray[np.integer]) -> F32:
    difference = x - np.float32(1) / inverse * codes.astype(np.float32)
    return total(weights * difference * difference)


def _times_square(weights: F32, codes: npt.NDArray[np.integer]) -> F32:
    as_float = codes.astype(np.float32)
    return weights * as_float * as_float


def _improve_positive(x: F32, w: F32, wx: F32, codes: I32, sum_lx: F32, sum_l2: F32, top: int) -> bool:
    """Move one element's code where that improves the fit; all arguments [blocks], the last three written to."""
    slx = sum_lx - wx * codes.astype(np.float32)
    sl2 = sum_l2 - _times_square(w, codes)
    moved = np.minimum(nearest_int(np.divide(x * sl2, slx)), top)
    at = np.flatnonzero((slx > 0) & (sl2 > 0) & (moved != codes))
    if not at.size:
        return False
    moved, old_lx, old_l2 = moved[at], sum_lx[at], sum_l2[at]
    slx = slx[at] + wx[at] * moved.astype(np.float32)
    sl2 = sl2[at] + _times_square(w[at], moved)
    better = slx * slx * old_l2 > old_lx * old_lx * sl2
    at = at[better]
    codes[at], sum_lx[at], sum_l2[at] = moved[better] & 0xFF, slx[better], sl2[better]
    return bool(at.size)


def first_peak(x: F32) -> F32:
    """The element of largest magnitude of each row [rows, n] with its sign, 0 where there is none above 0."""
    high = np.fmax.reduce(x, axis=1, initial=np.float32(0))
    low = np.fmin.reduce(x, axis=1, initial=np.float32(0))
    return signed_peak(x, high, low)
