"""The steps of rounding with error feedback within some columns: the kernels behind `edgekit_numba.feeding`.

A lane is a row of the weights, which are stored by columns. Numbers are numpy's: `edgekit.pipeline.rounding._feedback`
is the reference, and each operation here is one of its own, in its order.
"""

from __future__ import annotations

from typing import Any

import attrs

from edgekit_numba.kernels import Written, function
from edgekit_numba.rounding import rint
from edgekit_numba.vectors import F32, I8, I32, I64, Code, Vector, select

_FLOATS, _BYTES, _NUMBERS = F32.as_pointer(), I8.as_pointer(), I64.as_pointer()


@attrs.frozen
class _Columns:
    """Columns in memory, of which each lane has its row; rows of 16 bytes and more lie next to each other."""

    code: Code
    pointer: Any
    stride: Any
    first: Any

    def _place(self, column: Any, element: Any) -> Any:
        builder = self.code.builder
        at = builder.add(builder.mul(self.code.index(column), self.stride), self.first)
        return builder.bitcast(builder.gep(self.pointer, [at]), self.code.type(element).as_pointer())

    def __getitem__(self, column: Any) -> Vector:
        return Vector(self.code, self.code.builder.load(self._place(column, F32), align=4))

    def __setitem__(self, column: Any, value: Vector) -> None:
        self.code.builder.store(value.value, self._place(column, F32), align=4)

    def byte(self, column: Any) -> Vector:
        """A column of bytes as integers."""
        packed = self.code.builder.load(self._place(column, I8), align=1)
        return Vector(self.code, self.code.builder.zext(packed, self.code.type(I32)))

    def set_byte(self, column: Any, value: Vector) -> None:
        """Write a column of bytes."""
        packed = self.code.builder.trunc(value.value, self.code.type(I8))
        self.code.builder.store(packed, self._place(column, I8), align=1)


@attrs.frozen
class _Whole:
    """Levels that follow one another by 1: memory holds the first, and the largest code."""

    first: Vector
    top: Vector

    @classmethod
    def of(cls, code: Code, levels: Any, _count: Any) -> _Whole:
        return cls(*(code.broadcast(_number(code, levels, code.index(k))) for k in range(2)))

    def nearest(self, t: Vector) -> tuple[Vector, Vector]:
        """The code of the level next to a target, as an integer, and the level."""
        t = rint(t) - self.first
        t = select(t < 0, 0.0, t)
        t = select(t > self.top, self.top, t)
        return t.to_int(), t + self.first


@attrs.frozen
class _Table:
    """Any ascending levels: memory holds them, and after them what lies midway between each and the next."""

    code: Code
    levels: Any
    count: Any

    @classmethod
    def of(cls, code: Code, levels: Any, count: Any) -> _Table:
        return cls(code, levels, count)

    def nearest(self, t: Vector) -> tuple[Vector, Vector]:
        """The code of the level next to a target, as an integer, and the level."""
        code, builder = self.code, self.code.builder
        number, level = code.variable(code.i32(0)), code.variable(self[code.index(0)])
        with code.loop(builder.sub(self.count, code.index(1))) as k:
            above = t > self[builder.add(self.count, k)]
            number.set(number.get() + above.ones())
            level.set(self[builder.add(k, code.index(1))], above)
        return number.get(), level.get()

    def __getitem__(self, at: Any) -> Vector:
        return self.code.broadcast(_number(self.code, self.levels, at))


@attrs.frozen
class _Places:
    """How codes stand for values; see `edgekit.pipeline.rounding.Places`."""

    code: Code
    scale: _Columns
    inverse: _Columns
    zero: _Columns
    bias: _Columns
    levels: _Whole | _Table

    #: Of the arguments of a kernel.
    TYPES = (_FLOATS, _FLOATS, I64, _FLOATS, I64, _FLOATS, I64, _FLOATS, I64)

    @classmethod
    def of(cls, code: Code, given: Any, first: Any, levels: type[_Whole | _Table]) -> _Places:
        """Those of the arguments, for the rows from `first` on."""
        scale, inverse, stride, zero, zero_stride, bias, bias_stride, table, count = given

        def columns(pointer: Any, step: Any) -> _Columns:
            return _Columns(code, pointer, step, first)

        scales = columns(scale, stride), columns(inverse, stride)
        return cls(code, *scales, columns(zero, zero_stride), columns(bias, bias_stride), levels.of(code, table, count))

    def nearest(self, target: Vector, group: Any) -> tuple[Vector, Vector]:
        """The code of the level next to a target, as an integer, and the level."""
        return self.levels.nearest((target - self.bias[group]) * self.inverse[group] + self.zero[group])

    def value(self, level: Vector, group: Any) -> Vector:
        """What a level stands for."""
        return (level - self.zero[group]) * self.scale[group] + self.bias[group]


def _columns(code: Code, given: Any, first: Any) -> list[_Columns]:
    """Columns of pointers, each with its stride, from row `first` on."""
    return [_Columns(code, given[k], given[k + 1], first) for k in range(0, len(given), 2)]


def _scalar(code: Code, pointer: Any, row: Any, stride: Any, column: Any) -> Vector:
    """One number of a matrix in every lane."""
    at = code.builder.add(code.builder.mul(row, stride), column)
    return code.broadcast(code.builder.load(code.builder.gep(pointer, [at])))


def _number(code: Code, pointer: Any, at: Any) -> Any:
    return code.builder.load(code.builder.gep(pointer, [at]))


@attrs.frozen
class Feed:
    """The kernel ``feed(vectors, n, columns, groups, spread, targets, stride, errors, stride, ...)``; see `__call__`.

    Attributes:
        name: of the function.
        levels: of which kind they are.
    """

    name: str
    levels: type[_Whole | _Table]

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        pairs = [_FLOATS, I64, _FLOATS, I64, _BYTES, I64, _FLOATS, I64]
        arguments = [I64, I64, _NUMBERS, _NUMBERS, _FLOATS, *pairs, *_Places.TYPES]
        with function(self.name, arguments, lanes) as (code, given):
            vectors, n, numbers, groups, spread = given[:5]
            builder = code.builder
            with code.loop(vectors) as vector:
                first = code.scaled(vector, lanes)
                targets, errors, codes, weights = _columns(code, given[5:13], first)
                places = _Places.of(code, given[13:], first, self.levels)
                with code.loop(n) as j:
                    column, group = _number(code, numbers, j), _number(code, groups, j)
                    number, level = places.nearest(targets[j], group)
                    codes.set_byte(column, number)
                    error = weights[column] - places.value(level, group)
                    errors[j] = error
                    after = builder.add(j, code.index(1))
                    with builder.if_then(builder.icmp_signed("<", after, n)), code.loop(n, after) as later:
                        targets[later] = targets[later] + _scalar(code, spread, j, n, later) * error
        return code.text()


@attrs.frozen
class Descend:
    """The kernel ``descend(vectors, n, columns, groups, h, slopes, stride, values, stride, ...)``; see `__call__`.

    Attributes:
        name: of the function.
        levels: of which kind they are.
    """

    name: str
    levels: type[_Whole | _Table]

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        pairs = [_FLOATS, I64, _FLOATS, I64, _FLOATS, I64, _BYTES, I64]
        arguments = [I64, I64, _NUMBERS, _NUMBERS, _FLOATS, *pairs, *_Places.TYPES, I32.as_pointer()]
        with function(self.name, arguments, lanes) as (code, given):
            vectors, n, numbers, groups, h = given[:5]
            builder = code.builder
            changes = code.variable(code.i32(0))
            with code.loop(vectors) as vector:
                first = code.scaled(vector, lanes)
                slopes, values, errors, codes = _columns(code, given[5:13], first)
                places = _Places.of(code, given[13:-1], first, self.levels)
                changes.set(code.i32(0))
                with code.loop(n) as j:
                    column, group = _number(code, numbers, j), _number(code, groups, j)
                    before = values[column]
                    number, level = places.nearest(before + slopes[j] / _scalar(code, h, j, n, j), group)
                    different = number != codes.byte(column)
                    with code.where_any(different):
                        changes.set(changes.get() + different.ones())
                        moved = places.value(level, group)
                        step = moved - before
                        codes.set_byte(column, number)
                        values[column] = moved
                        errors[column] = errors[column] - step
                        after = builder.add(j, code.index(1))
                        with builder.if_then(builder.icmp_signed("<", after, n)), code.loop(n, after) as later:
                            slopes[later] = slopes[later] - _scalar(code, h, j, n, later) * step
                place = builder.bitcast(builder.gep(given[-1], [first]), code.type(I32).as_pointer())
                builder.store(changes.get().value, place, align=4)
        return code.text()


def _substitute(code: Code, vectors: Any, n: Any, factor: Any, pointer: Any, stride: Any) -> None:
    """See `edgekit.pipeline.rounding.Substitute`."""
    builder = code.builder
    with code.loop(vectors) as vector:
        values = _Columns(code, pointer, stride, code.scaled(vector, code.lanes))
        with code.loop(n) as j:
            solved = values[j] / _scalar(code, factor, j, n, j)
            values[j] = solved
            after = builder.add(j, code.index(1))
            with builder.if_then(builder.icmp_signed("<", after, n)), code.loop(n, after) as later:
                values[later] = values[later] - _scalar(code, factor, j, n, later) * solved


_STEPS: dict[str, type[Feed | Descend]] = {"feed": Feed, "descend": Descend}


def emitters() -> list[Feed | Descend | Written]:
    """The kernels of this module."""
    kinds = {"": _Whole, "_table": _Table}
    steps = [emit(f"{name}{of}", levels) for name, emit in _STEPS.items() for of, levels in kinds.items()]
    return [*steps, Written("substitute", (I64, I64, _FLOATS, _FLOATS, I64), _substitute)]


__all__ = ["Descend", "Feed", "emitters"]
