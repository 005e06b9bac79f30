"""Q4_0, Q4_1, Q5_0 and Q5_1 with an importance matrix: blocks of 32 whose scale is searched."""

from __future__ import annotations

from functools import partial

from edgekit_numba.kernels import Emitter, Weights
from edgekit_numba.layout import Output, planes
from edgekit_numba.rounding import to_half
from edgekit_numba.searches import affine, affine_steps, symmetric, weigh
from edgekit_numba.vectors import I32, Code, Rows, Vector


def symmetric_block(code: Code, x: Rows, out: Output, weights: Weights | None, top: int) -> Vector:
    """One block of Q4_0 or Q5_0: codes 0 to ``2 * top - 1``."""
    codes = code.rows(32, I32)
    fit = symmetric(code, x, _weights(code, x, weights), top)
    for j, v in enumerate(x):
        codes[j] = fit.code(v, top).to_int() + top
    out.float16(0, to_half(fit.scale))
    _pack(code, codes, out, 2, top > 8)
    return fit.scale.nonfinite()


def affine_block(code: Code, x: Rows, out: Output, weights: Weights | None, top: int) -> Vector:
    """One block of Q4_1 or Q5_1: codes 0 to `top`."""
    codes = code.rows(32, I32)
    fit = affine(code, x, _weights(code, x, weights), top, affine_steps(-0.9, 0.05, 36, top))
    for j, v in enumerate(x):
        codes[j] = fit.code(v, top).to_int()
    out.float16(0, to_half(fit.scale))
    out.float16(2, to_half(fit.minimum))
    _pack(code, codes, out, 4, top > 15)
    return fit.scale.nonfinite() | fit.minimum.nonfinite()


def _weights(code: Code, x: Rows, weights: Weights | None) -> Rows:
    assert weights is not None
    products = code.rows(len(x))
    weigh(x, weights.columns, weights.power, products)
    return products


def _pack(code: Code, codes: Rows, out: Output, at: int, fifth: bool) -> None:
    if fifth:
        word = code.i32(0)
        for j, c in enumerate(codes):
            word = word | (((c >> 4) & 1) << j)
        out.words(at, [word])
    planes(code, out, at + 4 * fifth, codes, 1, 2, 4)


def emitters() -> list[Emitter]:
    """The kernels of this module."""
    return [
        Emitter(f"{kind}_weighted", 32, size, partial(body, top=top), weighted=True)
        for kind, size, body, top in (
            ("Q4_0", 18, symmetric_block, 8),
            ("Q5_0", 22, symmetric_block, 16),
            ("Q4_1", 20, affine_block, 15),
            ("Q5_1", 24, affine_block, 31),
        )
    ]


__all__ = ["affine_block", "emitters", "symmetric_block"]
