"""The function around a block type's body: it loads a group of blocks, one a lane, and writes their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from llvmlite import ir

from edgekit_numba import layout
from edgekit_numba.vectors import F32, I8, I64, Code, Rows, Vector


@attrs.frozen
class Weights:
    """What an importance matrix says about the blocks in the lanes.

    Attributes:
        columns: the importance of each element's column.
        power: mean of x² over the whole row.
    """

    columns: Rows
    power: Vector


#: Writes the bytes of the blocks, and says which of them it leaves to the reference.
Body = Callable[[Code, Rows, layout.Output, Weights | None], Vector]


@attrs.frozen
class Emitter:
    """A block type's kernel as a function of the processor's lanes.

    Attributes:
        name: of the function.
        size: elements of a block.
        bytes: of a block.
        body: the arithmetic.
        weighted: whether it takes an importance matrix.
    """

    name: str
    size: int
    bytes: int
    body: Body
    weighted: bool = False

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        module = ir.Module(self.name)
        function = ir.Function(module, self._type(), self.name)
        function.attributes.add("nounwind")
        code = Code(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
        start = code.builder.append_basic_block("start")
        code.builder.position_at_end(start)
        x, importance = code.rows(self.size), code.rows(self.size) if self.weighted else None
        with code.loop(function.args[3]) as group:
            self._group(code, function.args, group, x, importance)
        code.builder.ret_void()
        code.builder.position_at_end(function.entry_basic_block)
        code.builder.branch(start)
        return vectorized(str(module))

    def _type(self) -> Any:
        pointers = [F32.as_pointer(), I8.as_pointer(), I8.as_pointer(), I64]
        extra = [F32.as_pointer(), F32.as_pointer(), I64, I64] if self.weighted else []
        return ir.FunctionType(ir.VoidType(), pointers + extra)

    def _group(self, code: Code, arguments: Any, group: Any, x: Rows, importance: Rows | None) -> None:
        builder, block = code.builder, code.scaled(group, code.lanes)
        nonfinite = layout.load(code, builder.gep(arguments[0], [code.scaled(block, self.size)]), self.size, x)
        out = layout.Output(code, builder.gep(arguments[1], [code.scaled(block, self.bytes)]), self.bytes)
        weights = None if importance is None else self._weights(code, arguments[4:], block, importance)
        odd = self.body(code, x, out, weights) | nonfinite
        flags = builder.gep(arguments[2], [block])
        flags = builder.bitcast(flags, code.type(I8).as_pointer())
        builder.store(builder.zext(odd.value, code.type(I8)), flags, align=1)

    def _weights(self, code: Code, arguments: Any, block: Any, importance: Rows) -> Weights:
        builder, (columns, powers, per_row, first) = code.builder, arguments
        place = builder.mul(builder.urem(builder.add(block, first), per_row), code.index(self.size))
        layout.load(code, builder.gep(columns, [place]), self.size, importance)
        at = builder.bitcast(builder.gep(powers, [block]), code.type(F32).as_pointer())
        return Weights(importance, Vector(code, builder.load(at, align=4)))


def vectorized(text: str) -> str:
    """Let registers of 512 bits be used where they are; LLVM shuns them on some processors."""
    wide = ' "min-legal-vector-width"="512" "prefer-vector-width"="512"'
    return "\n".join(f"{line}{wide}" if line.startswith("define") else line for line in text.split("\n"))


@attrs.frozen
class RowPower:
    """The kernel ``row_power(x, out, groups, cols)``: the sum of x² over each row, a row in each lane."""

    name: str = "row_power"

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        module = ir.Module(self.name)
        signature = ir.FunctionType(ir.VoidType(), [F32.as_pointer(), F32.as_pointer(), I64, I64])
        function = ir.Function(module, signature, self.name)
        x, out, groups, cols = function.args
        code = Code(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
        start = code.builder.append_basic_block("start")
        code.builder.position_at_end(start)
        with code.loop(groups) as group:
            first = code.scaled(group, lanes)
            rows = code.builder.gep(x, [code.builder.mul(first, cols)])
            total = code.variable(code.f32(0))
            with code.loop(code.builder.udiv(cols, code.index(4))) as quarter:
                for v in layout.turned(code, rows, cols, code.scaled(quarter, 4)):
                    total.set(total.get() + v * v)
            place = code.builder.bitcast(code.builder.gep(out, [first]), code.type(F32).as_pointer())
            code.builder.store(total.get().value, place, align=4)
        code.builder.ret_void()
        code.builder.position_at_end(function.entry_basic_block)
        code.builder.branch(start)
        return vectorized(str(module))


def emitters() -> list[RowPower]:
    """The kernels of this module."""
    return [RowPower()]
