"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 with one scale."""

from __future__ import annotations

from functools import partial

from edgekit_numba.kernels import Emitter, Weights
from edgekit_numba.layout import Output, bytes_word, planes
from edgekit_numba.rounding import round_away, to_half
from edgekit_numba.searches import affine, affine_steps, peak_of, reciprocal, symmetric
from edgekit_numba.vectors import I32, Code, Rows, Vector, select


def q8_0(code: Code, x: Rows, out: Output, weights: Weights | None) -> Vector:
    """One block of Q8_0."""
    largest = code.f32(0)
    for v in x:
        largest = select(abs(v) > largest, abs(v), largest)
    d = largest / 127
    inverse = reciprocal(d)
    out.halves(0, to_half(d))
    for start in range(0, 32, 16):
        out.words(
            2 + start, [bytes_word([round_away(v * inverse) for v in x.part(start + k, 4)]) for k in range(0, 16, 4)]
        )
    return inverse.nonfinite()


def symmetric_block(code: Code, x: Rows, out: Output, weights: Weights | None, top: int) -> Vector:
    """One block of Q4_0 or Q5_0: codes 0 to ``2 * top - 1``."""
    codes = code.rows(32, I32)
    if weights is None:
        d = peak_of(code, x) / -top
        inverse = reciprocal(d)
        for j, v in enumerate(x):
            codes[j] = (v * inverse + (top + 0.5)).to_int().at_most(2 * top - 1)
        odd = inverse.nonfinite()
    else:
        w = _search_weights(code, x, weights)
        found = symmetric(code, x, w, top)
        for j, v in enumerate(x):
            codes[j] = found.code(v, top).to_int() + top
        d, odd = found.scale, found.scale.nonfinite()
    out.halves(0, to_half(d))
    _pack(code, codes, out, 2, top > 8)
    return odd


def affine_block(code: Code, x: Rows, out: Output, weights: Weights | None, top: int) -> Vector:
    """One block of Q4_1 or Q5_1: codes 0 to `top`."""
    codes = code.rows(32, I32)
    if weights is None:
        low = high = x[0]
        for v in x:
            low, high = select(v < low, v, low), select(v > high, v, high)
        d = (high - low) / top
        inverse = reciprocal(d)
        for j, v in enumerate(x):
            codes[j] = ((v - low) * inverse + 0.5).to_int().at_most(top)
        minimum, odd = low, inverse.nonfinite() | d.nonfinite()
    else:
        w = _search_weights(code, x, weights)
        found = affine(code, x, w, top, affine_steps(-0.9, 0.05, 36, top))
        for j, v in enumerate(x):
            codes[j] = found.code(v, top).to_int()
        d, minimum = found.scale, found.minimum
        odd = d.nonfinite() | minimum.nonfinite()
    out.halves(0, to_half(d))
    out.halves(2, to_half(minimum))
    _pack(code, codes, out, 4, top > 15)
    return odd


def _search_weights(code: Code, x: Rows, weights: Weights) -> Rows:
    found = code.rows(len(x))
    for j, v in enumerate(x):
        found[j] = weights.columns[j] * (weights.power + v * v).sqrt()
    return found


def _pack(code: Code, codes: Rows, out: Output, at: int, fifth: bool) -> None:
    if fifth:
        word = code.i32(0)
        for j, c in enumerate(codes):
            word = word | (((c >> 4) & 1) << j)
        out.words(at, [word])
    planes(code, out, at + 4 * fifth, codes, 1, 2, 4)


def emitters() -> list[Emitter]:
    """The kernels of this module."""
    found = [Emitter("Q8_0", 32, 34, q8_0)]
    for kind, size, body, top in (
        ("Q4_0", 18, symmetric_block, 8),
        ("Q5_0", 22, symmetric_block, 16),
        ("Q4_1", 20, affine_block, 15),
        ("Q5_1", 24, affine_block, 31),
    ):
        found.append(Emitter(kind, 32, size, partial(body, top=top)))
        found.append(Emitter(f"{kind}_weighted", 32, size, partial(body, top=top), weighted=True))
    return found
