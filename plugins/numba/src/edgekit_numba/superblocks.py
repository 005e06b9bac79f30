"""The K types: super-blocks of 256 elements whose sub-blocks have small integer scales.

A lane is a super-block; its sub-blocks are searched one after the other, in a loop that runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit_numba.kernels import Emitter, Weights
from edgekit_numba.layout import Output, bytes_word, planes
from edgekit_numba.rounding import from_half, nearest_int, round_clip, to_half
from edgekit_numba.searches import (
    EPSILON,
    Affine,
    Symmetric,
    affine,
    affine_steps,
    descent,
    peak_of,
    positive,
    squares,
    symmetric,
    weigh,
)
from edgekit_numba.vectors import I32, Code, Rows, Vector, select

SIZE = 256
Steps = npt.NDArray[np.float32]
_FINE = (-0.9, 0.05, 36)  # the steps of every affine search with an importance matrix


class _AffineFits:
    """What the searches of the sub-blocks found, kept for later."""

    def __init__(self, code: Code, subs: int) -> None:
        self.scales, self.depths, self.inverses, self.origins = (code.rows(subs) for _ in range(4))

    def keep(self, sub: Any, fit: Affine) -> None:
        self.scales[sub], self.depths[sub] = fit.scale, -fit.minimum
        self.inverses[sub], self.origins[sub] = fit.inverse, fit.origin

    def at(self, sub: Any) -> Affine:
        return Affine(self.scales[sub], -self.depths[sub], self.inverses[sub], self.origins[sub])


def affine_block(
    code: Code, x: Rows, weights: Weights | None, sub_size: int, top: int, steps: Steps, scale_top: int
) -> tuple[_AffineFits, tuple[Vector, Rows], tuple[Vector, Rows]]:
    """Search the sub-blocks of Q2_K, Q4_K or Q5_K; gives the fits, and d and codes of the scales and of the minima."""
    subs = SIZE // sub_size
    fits, sums = _AffineFits(code, subs), code.rows(subs)
    w = code.rows(sub_size)
    power = None if weights is None else squares(x) * (1 if sub_size == 16 else 2) / SIZE
    with code.loop(subs) as sub:
        part = x.part(code.scaled(sub, sub_size), sub_size)
        if weights is None or power is None:
            _plain_weights(code, part, w)
        else:
            sums[sub] = weigh(part, weights.columns.part(code.scaled(sub, sub_size), sub_size), power, w)
        fits.keep(sub, affine(code, part, w, top, steps, absolute=weights is None and sub_size == 16))
    if weights is None:
        scales, depths = (_linear_scales(code, values, scale_top) for values in (fits.scales, fits.depths))
    else:
        scales, depths = (_searched_scales(code, values, sums, scale_top) for values in (fits.scales, fits.depths))
    return fits, scales, depths


def _plain_weights(code: Code, x: Rows, into: Rows) -> None:
    if len(x) == 16:  # Q2_K
        for j, v in enumerate(x):
            into[j] = abs(v)
        return
    total = code.f32(0)
    for v in x:
        total = total + v * v
    level = (total / len(x)).sqrt()
    for j, v in enumerate(x):
        into[j] = level + abs(v)


def _linear_scales(code: Code, values: Rows, top: int) -> tuple[Vector, Rows]:
    """Quantize values to 0..`top` of their maximum; negative ones wrap around in 8 bits."""
    peak = code.f32(0)
    for v in values:
        peak = select(v > peak, v, peak)
    inverse = select(peak > 0, top / peak, 0)
    codes = code.rows(len(values), I32)
    for j, v in enumerate(values):
        codes[j] = nearest_int(inverse * v) & 0xFF
    return peak / top, codes


def _searched_scales(code: Code, values: Rows, sums: Rows, top: int) -> tuple[Vector, Rows]:
    codes = code.rows(len(values), I32)
    return positive(code, values, sums, codes, top), codes


def _affine_codes(
    code: Code, x: Rows, fits: _AffineFits, grid: Callable[[Any], tuple[Vector, Vector]], sub_size: int, top: int
) -> Rows:
    """The codes of all elements under the stored scales; the search's where a scale came out as zero."""
    codes = code.rows(SIZE, I32)
    with code.loop(SIZE // sub_size) as sub:
        step, offset = grid(sub)
        fit, first = fits.at(sub), code.scaled(sub, sub_size)
        part, into = x.part(first, sub_size), codes.part(first, sub_size)
        for j, v in enumerate(part):
            into[j] = round_clip((v + offset) / step, 0, top).to_int()
        with code.where_any(step == 0):
            for j, v in enumerate(part):
                into[j] = select(step == 0, fit.code(v, top).to_int(), into[j])
    return codes


def q2_k(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of Q2_K."""
    steps = affine_steps(-0.5, 0.1, 15, 3) if weights is None else affine_steps(*_FINE, 3)
    fits, (d, scales), (dmin, depths) = affine_block(code, x, weights, 16, 3, steps, 15)
    half, half_min = to_half(d), to_half(dmin)
    stored, stored_d, stored_dmin = code.rows(16, I32), from_half(half), from_half(half_min)
    for j, (scale, depth) in enumerate(zip(scales, depths, strict=True)):
        stored[j] = (scale | (depth << 4)) & 0xFF

    def grid(sub: Any) -> tuple[Vector, Vector]:
        return stored_d * (stored[sub] & 15).to_float(), stored_dmin * (stored[sub] >> 4).to_float()

    codes = _affine_codes(code, x, fits, grid, 16, 3)
    out.words(0, [bytes_word(stored.part(j, 4)) for j in range(0, 16, 4)])
    planes(code, out, 16, codes, 2, 4, 2)
    out.float16(80, half)
    out.float16(82, half_min)
    return d.nonfinite() | dmin.nonfinite()


def six_bit_block(
    code: Code, x: Rows, out: Output, weights: Weights | None, top: int, coarse: tuple[float, float, int]
) -> Vector:
    """One block of Q4_K or Q5_K."""
    steps = affine_steps(*(coarse if weights is None else _FINE), top)
    fits, (d, scales), (dmin, depths) = affine_block(code, x, weights, 32, top, steps, 63)
    if weights is None or top > 15:  # as in C, Q4_K with an importance matrix lets them spill
        for codes in (scales, depths):
            for j, c in enumerate(codes):
                codes[j] = c.at_most(63)
    half, half_min = to_half(d), to_half(dmin)
    stored_d, stored_dmin = from_half(half), from_half(half_min)
    packed = _pack_six_bits(scales, depths)
    _unpack_six_bits(packed, scales, depths)

    def grid(sub: Any) -> tuple[Vector, Vector]:
        return stored_d * scales[sub].to_float(), stored_dmin * depths[sub].to_float()

    codes = _affine_codes(code, x, fits, grid, 32, top)
    out.float16(0, half)
    out.float16(2, half_min)
    out.words(4, [bytes_word(packed[j : j + 4]) for j in range(0, 12, 4)])
    if top > 15:
        planes(code, out, 16, codes, 1, 8, 1, first=4)
    planes(code, out, 48 if top > 15 else 16, codes, 4, 2, 4)
    return d.nonfinite() | dmin.nonfinite()


def _pack_six_bits(scales: Rows, depths: Rows) -> list[Vector]:
    """Scales and minima as 12 bytes; what exceeds 6 bits spills, as in C."""
    low = [values[j] | (values[j + 4] >> 4 << 6) for values in (scales, depths) for j in range(4)]
    return [byte & 0xFF for byte in low + [(scales[j] & 15) | (depths[j] << 4) for j in range(4, 8)]]


def _unpack_six_bits(packed: list[Vector], scales: Rows, depths: Rows) -> None:
    for j in range(4):
        scales[j], depths[j] = packed[j] & 63, packed[j + 4] & 63
        scales[j + 4] = (packed[j + 8] & 15) | (packed[j] >> 6 << 4)
        depths[j + 4] = (packed[j + 8] >> 4) | (packed[j + 4] >> 6 << 4)


def _symmetric_codes(
    code: Code, x: Rows, steps: Rows, searched: Callable[[Any, Any, Vector], Vector], top: int
) -> Rows:
    """The codes of all elements under the stored scales, plus `top`; the search's where a scale is zero."""
    codes = code.rows(SIZE, I32)
    with code.loop(SIZE // 16) as sub:
        step, first = steps[sub], code.scaled(sub, 16)
        part, into = x.part(first, 16), codes.part(first, 16)
        for j, v in enumerate(part):
            into[j] = round_clip(v / step, -top, top - 1).to_int() + top
        with code.where_any(step == 0):
            for j, v in enumerate(part):
                row = code.builder.add(first, code.index(j))
                into[j] = select(step == 0, searched(sub, row, v).to_int() + top, into[j])
    return codes


class _SymmetricFits:
    """What the searches of the sub-blocks found, kept for later."""

    def __init__(self, code: Code, subs: int) -> None:
        self.scales, self.inverses = code.rows(subs), code.rows(subs)
        self.zeros = code.rows(subs, I32)

    def keep(self, sub: Any, fit: Symmetric) -> None:
        self.scales[sub], self.inverses[sub], self.zeros[sub] = fit.scale, fit.inverse, fit.zero.ones()

    def at(self, sub: Any) -> Symmetric:
        return Symmetric(self.scales[sub], self.inverses[sub], self.zeros[sub] != 0)


def q3_k(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of Q3_K."""
    scales, steps = code.rows(16, I32), code.rows(16)
    if weights is None:
        d, searched = _q3_plain(code, x, scales)
    else:
        d, searched = _q3_weighted(code, x, weights, scales)
    half = to_half(d)
    for j, scale in enumerate(scales):
        steps[j] = from_half(half) * (scale - 32).to_float()
    codes = _symmetric_codes(code, x, steps, searched, 4)
    planes(code, out, 0, codes, 1, 8, 1, first=2)
    planes(code, out, 32, codes, 2, 4, 2)
    planes(code, out, 96, scales, 1, 2, 4)
    planes(code, out, 104, scales, 1, 4, 2, first=4)
    out.float16(108, half)
    return d.nonfinite()


Searched = Callable[[Any, Any, Vector], Vector]


def _q3_plain(code: Code, x: Rows, scales: Rows) -> tuple[Vector, Searched]:
    codes, values = code.rows(SIZE), code.rows(16)
    with code.loop(16) as sub:
        first = code.scaled(sub, 16)
        values[sub] = descent(code, x.part(first, 16), codes.part(first, 16), 4)
    peak = peak_of(code, values)
    inverse = -32 / peak
    for j, v in enumerate(values):
        wrapped = _int8(nearest_int(inverse * v)).at_least(-32).at_most(31)
        scales[j] = select(peak == 0, -32, wrapped) + 32
    return select(peak != 0, 1 / inverse, 0), lambda sub, row, v: codes[row]


def _q3_weighted(code: Code, x: Rows, weights: Weights, scales: Rows) -> tuple[Vector, Searched]:
    fits, sums, w = _SymmetricFits(code, 16), code.rows(16), code.rows(16)
    power = squares(x) * 2 / SIZE
    with code.loop(16) as sub:
        first = code.scaled(sub, 16)
        part = x.part(first, 16)
        sums[sub] = weigh(part, weights.columns.part(first, 16), power, w)
        fits.keep(sub, symmetric(code, part, w, 4))
    outer = symmetric(code, fits.scales, sums, 32)
    for j, v in enumerate(fits.scales):
        scales[j] = outer.code(v, 32).to_int() + 32
    return outer.scale, lambda sub, row, v: fits.at(sub).code(v, 4)


def _int8(v: Vector) -> Vector:
    """Cut to 8 bits, with its sign."""
    return ((v + 128) & 0xFF) - 128


def q6_k(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of Q6_K."""
    fits, scales, steps, w = _SymmetricFits(code, 16), code.rows(16, I32), code.rows(16), code.rows(16)
    with code.loop(16) as sub:
        first = code.scaled(sub, 16)
        part = x.part(first, 16)
        for j, v in enumerate(part):
            w[j] = v * v if weights is None else weights.columns.part(first, 16)[j]
        fits.keep(sub, symmetric(code, part, w, 32))
    peak = peak_of(code, fits.scales)
    inverse, zero = -128 / peak, abs(peak) < EPSILON
    d = select(zero, 0, 1 / inverse)
    half = to_half(d)
    for j, v in enumerate(fits.scales):
        scales[j] = select(zero, 0, _int8(nearest_int(inverse * v).at_most(127)))
        steps[j] = from_half(half) * scales[j].to_float()
    codes = _symmetric_codes(code, x, steps, lambda sub, row, v: fits.at(sub).code(v, 32), 32)
    with code.where_any(zero), code.loop(SIZE) as j:
        codes[j] = select(zero, 0, codes[j])
    planes(code, out, 0, codes, 2, 2, 4)
    planes(code, out, 128, codes, 2, 4, 2, first=4)
    out.words(192, [bytes_word(scales.part(j, 4)) for j in range(0, 16, 4)])
    out.float16(208, half)
    return d.nonfinite()


def emitters() -> list[Emitter]:
    """The kernels of this module."""
    kernels = []
    for kind, size, body in (
        ("Q2_K", 84, q2_k),
        ("Q3_K", 110, q3_k),
        ("Q4_K", 144, partial(six_bit_block, top=15, coarse=(-1.0, 0.1, 20))),
        ("Q5_K", 176, partial(six_bit_block, top=31, coarse=(-0.5, 0.1, 15))),
        ("Q6_K", 210, q6_k),
    ):
        kernels += [Emitter(kind, SIZE, size, body), Emitter(f"{kind}_weighted", SIZE, size, body, weighted=True)]
    return kernels


__all__ = ["SIZE", "Searched", "Steps", "affine_block", "emitters", "q2_k", "q3_k", "q6_k", "six_bit_block"]
