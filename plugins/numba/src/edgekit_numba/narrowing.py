"""Floats as integers of 13 bits, what their products stand for, and sums: the kernels behind `edgekit_numba.scaling`.

`edgekit.pipeline.rounding` says what each computes. Magnitudes are compared as the bits of floats, in whose order
infinity and what is no number come last.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgekit_numba.kernels import Written
from edgekit_numba.vectors import F32, F64, I16, I32, I64, Code, Vector, higher, select

#: Rows that `narrow_columns` and `cut_columns` turn at once: their halves of words fill a cache line.
TURNED = 32
#: The largest magnitude of an operand of `edgekit.pipeline.rounding.Multiply`.
_MOST = 4095.0
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000  # 1.5 * 2**23: a sum with it counts in ones
_MAGNITUDE = 0x7FFFFFFF
_FLOATS, _WORDS, _SHORTS = F32.as_pointer(), I32.as_pointer(), I16.as_pointer()


def _place(code: Code, pointer: Any, at: Any, element: Any) -> Any:
    return code.builder.bitcast(code.builder.gep(pointer, [at]), code.type(element).as_pointer())


def _magnitude(values: Vector) -> Vector:
    return values.bits() & _MAGNITUDE


def _integers(values: Vector, inverse: Vector) -> Vector:
    """Values in units, to the nearest integer, as int32; 0 where the inverse of the unit is 0."""
    counted = (values * inverse + _MAGIC).bits() - _MAGIC_BITS
    return select(inverse == 0.0, 0, counted)


def _largest_rows(code: Code, x: Any, stride: Any, out: Any, rows: Any, vectors: Any) -> None:
    builder = code.builder
    with code.loop(rows) as row:
        line, largest = builder.gep(x, [builder.mul(row, stride)]), code.variable(code.i32(0))
        with code.loop(vectors) as vector:
            largest.set(higher(largest.get(), _magnitude(code.load(line, code.scaled(vector, code.lanes)))))
        builder.store(builder.bitcast(code.largest(largest.get()), F32), builder.gep(out, [row]))


def _largest_columns(code: Code, x: Any, stride: Any, out: Any, rows: Any, vectors: Any) -> None:
    builder = code.builder
    with code.loop(rows) as row:
        line = builder.gep(x, [builder.mul(row, stride)])
        with code.loop(vectors) as vector:
            first = code.scaled(vector, code.lanes)
            largest = higher(code.load(out, first).bits(), _magnitude(code.load(line, first)))
            builder.store(largest.as_float().value, _place(code, out, first, F32), align=4)


def _narrow_rows(
    code: Code, x: Any, stride: Any, inverse: Any, out: Any, out_stride: Any, rows: Any, vectors: Any
) -> None:
    builder = code.builder
    with code.loop(rows) as row:
        line, target = builder.gep(x, [builder.mul(row, stride)]), builder.gep(out, [builder.mul(row, out_stride)])
        unit = code.broadcast(builder.load(builder.gep(inverse, [row])))
        with code.loop(vectors) as vector:
            first = code.scaled(vector, code.lanes)
            values = builder.trunc(_integers(code.load(line, first), unit).value, code.type(I16))
            builder.store(values, _place(code, target, first, I16), align=2)


def _cut(values: Vector, inverse: Vector) -> Vector:
    """Values in units, to the nearest integer, as int32, cut off at the largest magnitude."""
    units = values * inverse
    units = select(units > _MOST, _MOST, units)
    units = select(units < -_MOST, -_MOST, units)
    return (units + _MAGIC).bits() - _MAGIC_BITS


def _narrow_columns(
    code: Code, x: Any, stride: Any, inverse: Any, out: Any, out_stride: Any, blocks: Any, vectors: Any
) -> None:
    _cut_columns(code, x, stride, None, inverse, out, out_stride, blocks, vectors)


def _cut_columns(
    code: Code, x: Any, stride: Any, factor: Any, inverse: Any, out: Any, out_stride: Any, blocks: Any, vectors: Any
) -> None:
    """Columns as rows of integers; with factors, one for each row, they are cut off; without, `factor` is None."""
    builder, words = code.builder, TURNED // 2
    scratch = code.rows(words, I32)
    with code.loop(blocks) as block:
        start, left = code.scaled(block, TURNED), builder.gep(out, [code.scaled(block, words)])
        top = builder.gep(x, [builder.mul(start, stride)])
        with code.loop(vectors) as vector:
            first = code.scaled(vector, code.lanes)
            unit = code.load(inverse, first)

            def integers(row: int) -> Vector:
                values = code.load(top, builder.add(builder.mul(code.index(row), stride), first))
                if factor is None:
                    return _integers(values, unit)
                own = builder.load(builder.gep(factor, [builder.add(start, code.index(row))]))
                return _cut(values * code.broadcast(own), unit)

            for word in range(words):
                even, odd = integers(2 * word), integers(2 * word + 1)
                scratch[word] = (even & 0xFFFF) | (odd << 16)
            with code.loop(code.lanes) as lane:
                line = builder.gep(left, [builder.mul(builder.add(first, lane), out_stride)])
                for word in range(words):
                    builder.store(scratch.lane(word, lane), builder.gep(line, [code.index(word)]))


def _totals(code: Code, x: Any, stride: Any, y: Any, y_stride: Any, out: Any, rows: Any, vectors: Any) -> None:
    """Sums of products down the columns; the sums are of 64 bits."""
    builder, wide = code.builder, code.type(F64)
    total = code.rows(1, F64)
    with code.loop(vectors) as vector:
        first = code.scaled(vector, code.lanes)
        total[0] = Vector(code, ir.Constant(wide, [0.0] * code.lanes))
        with code.loop(rows) as row:
            product = code.load(x, builder.add(builder.mul(row, stride), first))
            product = product * code.load(y, builder.add(builder.mul(row, y_stride), first))
            total[0] = Vector(code, builder.fadd(total[0].value, builder.fpext(product.value, wide)))
        builder.store(total[0].value, builder.bitcast(builder.gep(out, [first]), wide.as_pointer()), align=8)


def _scale_both(code: Code, out: Any, stride: Any, of_rows: Any, of_columns: Any, rows: Any, vectors: Any) -> None:
    builder = code.builder
    with code.loop(rows) as row:
        line = builder.gep(out, [builder.mul(row, stride)])
        unit = code.broadcast(builder.load(builder.gep(of_rows, [row])))
        with code.loop(vectors) as vector:
            first = code.scaled(vector, code.lanes)
            scaled = code.load(line, first) * unit * code.load(of_columns, first)
            builder.store(scaled.value, _place(code, line, first, F32), align=4)


_MATRIX, _COUNTS = (_FLOATS, I64), (I64, I64)


def emitters() -> list[Written]:
    """The kernels of this module."""
    return [
        Written("largest_rows", (*_MATRIX, _FLOATS, *_COUNTS), _largest_rows),
        Written("largest_columns", (*_MATRIX, _FLOATS, *_COUNTS), _largest_columns),
        Written("narrow_rows", (*_MATRIX, _FLOATS, _SHORTS, I64, *_COUNTS), _narrow_rows),
        Written("narrow_columns", (*_MATRIX, _FLOATS, _WORDS, I64, *_COUNTS), _narrow_columns),
        Written("cut_columns", (*_MATRIX, _FLOATS, _FLOATS, _WORDS, I64, *_COUNTS), _cut_columns),
        Written("totals", (*_MATRIX, *_MATRIX, F64.as_pointer(), *_COUNTS), _totals),
        Written("scale_both", (*_MATRIX, _FLOATS, _FLOATS, *_COUNTS), _scale_both),
    ]


__all__ = ["TURNED", "emitters"]
