"""ggml's searches for the scale of a block.

Each search tries a fixed list of inverse scales, rounds the block to codes with each, fits the scale to those codes by
weighted least squares, and keeps the best. All arrays are columns [n, blocks], so that all blocks are processed at
once and every sum is over axis 0: sequential float32 additions, as in C; pairwise sums would change the codes.

The searches return the parameters that reproduce their codes instead of the codes: ggml computes the codes again from
the stored scale, unless that scale is zero.

Source: ``make_qkx2_quants``, ``make_qkx3_quants``, ``make_qx_quants``, ``make_q3_quants`` and ``make_qp_quants``
in ggml 0.25.3, ``ggml-quants.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._codes import first_minimum, round_clip, signed_peak
from edgekit.typing import F32, I32, U8, Bools, Indices, Ints

Index = Indices
At = Index | slice
_ALL = slice(None)

EPSILON = np.float32(1e-15)  # GROUP_MAX_EPS: a block whose largest magnitude is smaller counts as zero
_FAR = np.float32(2.0**-16)
_SMALLEST_SPAN = np.float32(1e-36)  # its reciprocal times the number of steps is finite


def total(v: F32) -> F32:
    """Return the sum over axis 0 of columns [n, blocks], by sequential float32 additions starting from +0."""
    if v.shape[1] == 1:  # numpy treats a single column as a vector, and would sum it pairwise
        return cast(F32, np.add.accumulate(v, axis=0)[-1] + np.float32(0))
    return cast(F32, np.add.reduce(v, axis=0, initial=np.float32(0)))


class Affine(NamedTuple):
    """A fit ``x ≈ scale * code + minimum``, with ``code = clip(nearest_int(inverse * (x - origin)), 0, top)``."""

    scale: F32
    minimum: F32
    inverse: F32
    origin: F32


def affine_codes(x: F32, fit: Affine, top: int, at: At = _ALL) -> F32:
    """Return the codes of the search for columns x, or for some of them, as float32 columns."""
    return round_clip((x[:, at] - fit.origin[at]) * fit.inverse[at], 0, top)


def affine_steps(first: float, step: float, tries: int, top: int) -> F32:
    """Return the numbers of steps to try for the range: ``first + step * i + top`` for i = 0 to `tries`, in float32."""
    return np.float32(first) + np.float32(step) * np.arange(tries + 1, dtype=np.float32) + np.float32(top)


def affine(x: F32, weights: F32, top: int, steps: F32, absolute: bool = False) -> Affine:
    """Search scale and minimum (``make_qkx2_quants``, ``make_qkx3_quants``).

    Args:
        x: columns [n, blocks].
        weights: weights of the squared errors, [n, blocks].
        top: the largest code.
        steps: the number of steps into which the range is divided, for each try.
        absolute: whether to weight absolute errors instead of squared ones.
    """
    return _AffineSearch(x, weights, top, absolute).run(steps)


class _AffineSearch:
    def __init__(self, x: F32, weights: F32, top: int, absolute: bool) -> None:
        self.x, self.weights, self.top = x, weights, top
        self.fold = np.abs if absolute else np.square
        self.codes, self.scratch, self.product = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        self.sum_w, self.sum_x = total(weights), total(weights * x)
        self.high = x.max(axis=0)
        self.low = first_minimum(x.T, x.min(axis=0))
        self.low[self.low > 0] = 0
        self.flat = np.flatnonzero(self.high == self.low)
        self.finite = bool(np.isfinite(self.high - self.low).all())

    def run(self, steps: F32) -> Affine:
        inverse = self.round(np.float32(self.top), self.low)
        best = Affine(np.float32(1) / inverse, self.low.copy(), inverse, self.low.copy())
        least = self.error(best.scale, best.minimum)
        for step in steps:
            origin = best.minimum.copy()  # an accepted candidate changes the origin of all later ones
            inverse = self.round(step, origin)
            scale, minimum, usable = self.fit()
            error = self.error(scale, minimum)
            better = usable & (error < least)
            np.copyto(least, error, where=better)
            for current, candidate in zip(best, (scale, minimum, inverse, origin), strict=True):
                np.copyto(current, candidate, where=better)
        best.scale[self.flat] = 0
        return best

    def round(self, step: np.float32, origin: F32) -> F32:
        """Choose codes with `step` steps from `origin` to the maximum; return the inverse scale."""
        span = self.high - origin
        span[self.flat] = 1  # gives 0 for every code without an overflow
        inverse: F32 = step / span
        np.subtract(self.x, origin, out=self.codes)
        self.codes *= inverse
        # A quotient reaches 2**22 only if the minimum is far below the origin, relative to the range above it.
        tame = self.finite and bool((span > (origin - self.low) * _FAR + _SMALLEST_SPAN).all())
        round_clip(self.codes, 0, self.top, tame)
        return inverse

    def fit(self) -> tuple[F32, F32, Bools]:
        """Return scale and minimum that fit the codes by least squares, and a mask of the blocks with such a fit."""
        weighted = np.multiply(self.codes, self.weights, out=self.scratch)
        sum_l = total(weighted)
        sum_xl = total(np.multiply(weighted, self.x, out=self.product))
        weighted *= self.codes
        sum_l2 = total(weighted)
        determinant = self.sum_w * sum_l2 - sum_l * sum_l
        scale = np.divide(self.sum_w * sum_xl - self.sum_x * sum_l, determinant)
        minimum = np.divide(sum_l2 * self.sum_x - sum_l * sum_xl, determinant)
        positive = np.flatnonzero(minimum > 0)
        minimum[positive] = 0
        scale[positive] = sum_xl[positive] / sum_l2[positive]
        return scale, minimum, determinant > 0

    def error(self, scale: F32, minimum: F32) -> F32:
        """Return the weighted error of the codes [blocks]."""
        np.multiply(self.codes, scale, out=self.scratch)
        self.scratch += minimum
        self.scratch -= self.x
        self.fold(self.scratch, out=self.scratch)
        self.scratch *= self.weights
        return total(self.scratch)


class Symmetric(NamedTuple):
    """A fit ``x ≈ scale * code``, with ``code = clip(nearest_int(inverse * x), -top, top - 1)``.

    In blocks where `zero` is set, every element counts as zero, and the code is -top.
    """

    scale: F32
    inverse: F32
    zero: Bools


def symmetric_codes(x: F32, fit: Symmetric, top: int, at: At = _ALL) -> F32:
    """Return the codes of the search for columns x, or for some of them, as float32 columns."""
    codes = round_clip(x[:, at] * fit.inverse[at], -top, top - 1)
    codes[:, fit.zero[at]] = -top
    return codes


def peak_and_zero(x: F32) -> tuple[F32, Bools]:
    """Return the signed element of largest magnitude of each block, and a mask of blocks that count as zero.

    NaN is ignored.
    """
    peak = first_peak(x.T)
    zero = np.abs(peak) < EPSILON
    peak[zero] = 1
    return peak, zero


def symmetric(x: F32, weights: F32, top: int) -> Symmetric:
    """Search the scale (``make_qx_quants`` with a weight for each element).

    Args:
        x: columns [n, blocks]; may hold NaN.
        weights: of the squared errors, [n, blocks].
        top: codes run from ``-top`` to ``top - 1``.
    """
    peak, zero = peak_and_zero(x)
    inverse = np.float32(-top) / peak
    sums = _symmetric_sums(x, weights, top)
    sum_lx, sum_l2 = sums(inverse)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for step in np.float32(0.1) * np.array([*range(-9, 0), *range(1, 10)], np.float32):
        candidate = -(np.float32(top) + step) / peak
        sum_lx, sum_l2 = sums(candidate)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        np.copyto(inverse, candidate, where=better)
        np.copyto(scale, sum_lx / sum_l2, where=better)
        np.copyto(best, scale * sum_lx, where=better)
    scale[zero] = 0
    return Symmetric(scale, inverse, zero)


def _symmetric_sums(x: F32, weights: F32, top: int) -> Callable[[F32], tuple[F32, F32]]:
    """Return a function from inverse scales [blocks] to the weighted sums of code * x and of code² for their codes."""
    weighted = weights * x
    codes, scratch = np.empty_like(x), np.empty_like(x)
    tame = bool(np.isfinite(x.max()) and np.isfinite(x.min()))  # no quotient exceeds top + 1

    def sums(inverse: F32) -> tuple[F32, F32]:
        round_clip(np.multiply(x, inverse, out=codes), -top, top - 1, tame)
        sum_lx = total(np.multiply(weighted, codes, out=scratch))
        np.multiply(weights, codes, out=scratch)
        return sum_lx, total(np.multiply(scratch, codes, out=scratch))

    return sums


class Descent(NamedTuple):
    """A fit ``x ≈ scale * code``: codes from -top to top - 1 as float32 columns; -top in blocks of zeros."""

    scale: F32
    codes: F32


def descent(x: F32, top: int, rounds: int = 5) -> Descent:
    """Coordinate descent on the codes, with weights x² (``make_q3_quants``).

    Args:
        x: columns [n, blocks].
        top: codes run from ``-top`` to ``top - 1``.
        rounds: largest number of passes over a block; a block that a pass does not change is finished.
    """
    peak, zero = peak_and_zero(x)
    codes = round_clip(x * (np.float32(-top) / peak), -top, top - 1)
    weights = x * x
    fit = _Fit(x, weights, weights * x, codes, total(weights * x * codes), total(weights * codes * codes))
    moving = np.flatnonzero(fit.improve(top))
    for _ in range(rounds - 1):
        if not moving.size:
            break
        part = _Fit(*(np.take(v, moving, axis=-1) for v in fit))
        changed = part.improve(top)
        fit.codes[:, moving], fit.sum_lx[moving], fit.sum_l2[moving] = part.codes, part.sum_lx, part.sum_l2
        moving = moving[changed]
    scale = np.where(fit.sum_l2 > 0, fit.sum_lx / fit.sum_l2, np.float32(0))
    scale[zero], codes[:, zero] = 0, -top
    return Descent(scale, codes)


class _Fit(NamedTuple):
    """Codes [n, blocks] and the weighted sums [blocks] of code * x and of code², which are changed in place."""

    x: F32
    weights: F32
    weighted: F32
    codes: F32
    sum_lx: F32
    sum_l2: F32

    def improve(self, top: int) -> Bools:
        """Try the best code of each element in turn; return a mask of the blocks in which a code changed."""
        changed = np.zeros(self.x.shape[1], np.bool_)
        terms_lx, terms_l2 = self.weighted * self.codes, self.weights * self.codes * self.codes
        for i, x in enumerate(self.x):
            slx, sl2 = self.sum_lx - terms_lx[i], self.sum_l2 - terms_l2[i]
            moved = x * sl2
            moved /= slx
            round_clip(moved, -top, top - 1)
            at = np.flatnonzero((moved != self.codes[i]) & (slx > 0))
            if at.size:
                changed[self._take(i, at, moved[at], slx[at], sl2[at])] = True
        return changed

    def _take(self, i: int, at: Index, moved: F32, slx: F32, sl2: F32) -> Index:
        """Set element i of blocks `at` to the codes `moved` where they fit better; return those blocks."""
        slx += self.weighted[i, at] * moved
        sl2 += self.weights[i, at] * moved * moved
        old_lx, old_l2 = self.sum_lx[at], self.sum_l2[at]
        better = (sl2 > 0) & (slx * slx * old_l2 > old_lx * old_lx * sl2)
        at = at[better]
        self.codes[i, at], self.sum_lx[at], self.sum_l2[at] = moved[better], slx[better], sl2[better]
        return at


class Positive(NamedTuple):
    """A fit ``x ≈ scale * code`` with codes as uint8 columns."""

    scale: F32
    codes: U8


def positive(x: F32, weights: F32, top: int, rounds: int = 5) -> Positive:
    """Search the scale of scales (``make_qp_quants``); codes are 0 to `top`, but those of negative x wrap around.

    Args:
        x: columns [n, blocks]; may hold NaN.
        weights: of the squared errors, [n, blocks].
        top: the largest code.
        rounds: largest number of passes of coordinate descent.
    """
    peak = np.zeros_like(x[0])
    for row in x:
        peak = np.where(peak > row, peak, row)  # C's MAX: a NaN is kept until the next element replaces it
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


def _squared_error(x: F32, weights: F32, inverse: F32, codes: Ints) -> F32:
    difference = x - np.float32(1) / inverse * codes.astype(np.float32)
    return total(weights * difference * difference)


def _times_square(weights: F32, codes: Ints) -> F32:
    as_float = codes.astype(np.float32)
    return weights * as_float * as_float


def _improve_positive(x: F32, w: F32, wx: F32, codes: I32, sum_lx: F32, sum_l2: F32, top: int) -> bool:
    """Change one element's code where that improves the fit; arrays are [blocks], the last three changed in place."""
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
    """Return the signed element of largest magnitude of each row [rows, n]; 0 if no magnitude is above 0."""
    high = np.fmax.reduce(x, axis=1, initial=np.float32(0))
    low = np.fmin.reduce(x, axis=1, initial=np.float32(0))
    return signed_peak(x, high, low)
