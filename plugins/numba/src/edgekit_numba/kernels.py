"""The function around a block type's body: it loads a group of blocks, one per lane, and writes their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from llvmlite import ir

from edgekit_numba import layout
from edgekit_numba.library import HUGE, ODD
from edgekit_numba.vectors import F32, I8, I64, Code, Rows, Vector, select


@attrs.frozen
class Weights:
    """The importance of the blocks in the lanes.

    Attributes:
        columns: the importance of each element's column.
        power: mean of x² over the whole row.
    """

    columns: Rows
    power: Vector


@contextmanager
def function(name: str, arguments: Sequence[Any], lanes: int) -> Iterator[tuple[Code, Any]]:
    """Write a module's only function; returns the code and the arguments."""
    module = ir.Module(name)
    written = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    written.attributes.add("nounwind")
    code = Code(module, ir.IRBuilder(written.append_basic_block("entry")), lanes)
    start = code.builder.append_basic_block("start")  # scratch memory is added to the entry
    code.builder.position_at_end(start)
    yield code, written.args
    code.builder.ret_void()
    code.builder.position_at_end(written.entry_basic_block)
    code.builder.branch(start)


@attrs.frozen
class Written:
    """A kernel with arguments of its own.

    Attributes:
        name: of the function.
        arguments: their types.
        body: the arithmetic.
    """

    name: str
    arguments: tuple[Any, ...]
    body: Callable[..., None]

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        with function(self.name, list(self.arguments), lanes) as (code, given):
            self.body(code, *given)
        return code.text()


LARGEST, SAFE = 0x7F7FFFFF, 0x477FE000  # the bits of the largest float32, and of the largest float16


def set_flags(code: Code, pointer: Any, first: Any, odd: Vector, huge: Vector) -> None:
    """Write a flag byte for each block in the lanes, from block `first` on; see `library`."""
    flags = select(odd, code.i32(ODD), 0) | select(huge, code.i32(HUGE), 0)
    place = code.builder.bitcast(code.builder.gep(pointer, [first]), code.type(I8).as_pointer())
    code.builder.store(code.builder.trunc(flags.value, code.type(I8)), place, align=1)


#: Writes the bytes of the blocks, and returns which of them it skips.
Body = Callable[..., Vector]


@attrs.frozen
class Emitter:
    """A block type's kernel, for any number of lanes.

    Attributes:
        name: of the function.
        size: elements of a block.
        bytes: of a block.
        body: the arithmetic.
        weighted: whether it uses an importance matrix.
        tables: types of pointers to tables, which are the last arguments of the kernel and of its body.
    """

    name: str
    size: int
    bytes: int
    body: Body
    weighted: bool = False
    tables: tuple[Any, ...] = ()

    def __call__(self, lanes: int) -> str:
        """Return LLVM's text of the module."""
        arguments = [F32.as_pointer(), I8.as_pointer(), I8.as_pointer(), I64]
        if self.weighted:
            arguments += [F32.as_pointer(), F32.as_pointer(), I64, I64]
        with function(self.name, [*arguments, *self.tables], lanes) as (code, given):
            x, importance = code.rows(self.size), code.rows(self.size) if self.weighted else None
            with code.loop(given[3]) as group:
                self._group(code, given, group, x, importance)
        return code.text()

    def _group(self, code: Code, arguments: Any, group: Any, x: Rows, importance: Rows | None) -> None:
        builder, block = code.builder, code.scaled(group, code.lanes)
        largest = layout.load(code, builder.gep(arguments[0], [code.scaled(block, self.size)]), self.size, x)
        out = layout.Output(code, builder.gep(arguments[1], [code.scaled(block, self.bytes)]), self.bytes)
        weights = None if importance is None else self._weights(code, arguments[4:], block, importance)
        tables = [arguments[len(arguments) - len(self.tables) :]] if self.tables else []
        odd = self.body(code, x, out, weights, *tables) | (largest > LARGEST)
        set_flags(code, arguments[2], block, odd, out.overflowed | (largest > SAFE))

    def _weights(self, code: Code, arguments: Any, block: Any, importance: Rows) -> Weights:
        builder, (columns, powers, per_row, first) = code.builder, arguments[:4]
        place = builder.mul(builder.urem(builder.add(block, first), per_row), code.index(self.size))
        layout.load(code, builder.gep(columns, [place]), self.size, importance)
        at = builder.bitcast(builder.gep(powers, [block]), code.type(F32).as_pointer())
        return Weights(importance, Vector(code, builder.load(at, align=4)))


@attrs.frozen
class RowPower:
    """The kernel ``row_power(x, out, groups, cols)``: the sum of x² over each row, a row in each lane."""

    name: str = "row_power"

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        arguments = [F32.as_pointer(), F32.as_pointer(), I64, I64]
        with function(self.name, arguments, lanes) as (code, (x, out, groups, cols)), code.loop(groups) as group:
            first, total = code.scaled(group, lanes), code.variable(code.f32(0))
            rows = code.builder.gep(x, [code.builder.mul(first, cols)])
            with code.loop(code.builder.udiv(cols, code.index(4))) as quarter:
                for v in layout.turned(code, rows, cols, code.scaled(quarter, 4)):
                    total.set(total.get() + v * v)
            place = code.builder.bitcast(code.builder.gep(out, [first]), code.type(F32).as_pointer())
            code.builder.store(total.get().value, place, align=4)
        return code.text()


def emitters() -> list[RowPower]:
    """Return the kernels of this module."""
    return [RowPower()]


__all__ = ["LARGEST", "SAFE", "Body", "Emitter", "RowPower", "Weights", "Written", "emitters", "function", "set_flags"]
