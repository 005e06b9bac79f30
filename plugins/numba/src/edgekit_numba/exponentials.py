"""Powers of e: the kernel behind `edgekit.pipeline.rounding.exponential`, step for step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from edgekit_numba.kernels import Written
from edgekit_numba.rounding import rint
from edgekit_numba.vectors import F32, I64, Code, Vector, select

_LOG2E, _LN2_HIGH, _LN2_LOW = (np.float32(x) for x in (1.44269504, 0.693359375, -2.12194440e-4))
_TERMS = [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1]
_LEAST, _MOST = -87.0, 88.0


def power(x: Vector) -> Vector:
    """Powers of e, by the polynomial of the Cephes library."""
    inside = select(x < _LEAST, _LEAST, x)
    inside = select(inside > _MOST, _MOST, inside)
    twos = rint(inside * _LOG2E)
    inside = inside - twos * _LN2_HIGH
    inside = inside - twos * _LN2_LOW
    found = _polynomial(inside, _TERMS)
    found = found * inside * inside + inside + 1.0
    found = found * ((twos.to_int() + 127) << 23).as_float()
    return select(x > _LEAST, found, select(x == x, 0.0, x))


def _polynomial(x: Vector, terms: Iterable[float]) -> Vector:
    first, *others = (np.float32(term) for term in terms)
    found = x.code.f32(float(first))
    for term in others:
        found = found * x + term
    return found


def _exponential(code: Code, x: Any, groups: Any) -> None:
    """As many elements as the processor has lanes in each group, in place."""
    with code.loop(groups) as group:
        place = code.builder.gep(x, [code.scaled(group, code.lanes)])
        place = code.builder.bitcast(place, code.type(F32).as_pointer())
        raised = power(Vector(code, code.builder.load(place, align=4)))
        code.builder.store(raised.value, place, align=4)


def _weigh(code: Code, scores: Any, stride: Any, sums: Any, rows: Any, vectors: Any) -> None:
    """A softmax's weights along the columns, in place."""
    builder = code.builder

    def place(pointer: Any, at: Any) -> Any:
        return builder.bitcast(builder.gep(pointer, [at]), code.type(F32).as_pointer())

    with code.loop(vectors) as vector:
        first = code.scaled(vector, code.lanes)
        largest, total = code.variable(code.f32(-np.inf)), code.variable(code.f32(0))
        with code.loop(rows) as row:
            score = code.load(scores, builder.add(builder.mul(row, stride), first))
            largest.set(select(score > largest.get(), score, largest.get()))
        with code.loop(rows) as row:
            at = builder.add(builder.mul(row, stride), first)
            raised = power(code.load(scores, at) - largest.get())
            builder.store(raised.value, place(scores, at), align=4)
            total.set(total.get() + raised)
        builder.store(total.get().value, place(sums, first), align=4)


def emitters() -> list[Written]:
    """The kernels of this module."""
    floats = F32.as_pointer()
    return [
        Written("exponential", (floats, I64), _exponential),
        Written("weigh", (floats, I64, floats, I64, I64), _weigh),
    ]


__all__ = ["emitters", "power"]
