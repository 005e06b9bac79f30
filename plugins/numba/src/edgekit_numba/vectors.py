"""A small language for kernels: Python that reads as scalar arithmetic on one block and emits vector instructions.

A `Vector` holds one value for every lane, and a lane is a block of its own: what the operators say happens to all
lanes at once, each in its own order of operations. ``a * b + c`` emits two instructions and never a fused one;
comparisons are C's (false where a side is NaN, ``!=`` true); there are no branches but `select`. Loops written in
Python are unrolled, loops written as ``with code.loop(n)`` run.

Integers have 32 bits and wrap around. Nothing is promoted: numbers that meet a vector become its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
ALIGNMENT = 64

_FLOAT_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul"}
_EXPONENT = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF


class Vector:
    """One value a lane: float32, int32, or a mask of one bit."""

    __slots__ = ("code", "value")

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.value = code, value

    @property
    def is_float(self) -> bool:
        """Whether the lanes are float32."""
        return bool(self.value.type.element == F32)

    def _like(self, other: Operand) -> Any:
        if isinstance(other, Vector):
            return other.value
        return constant(self.value.type, other)

    def _emit(self, name: str, *others: Any) -> Vector:
        return Vector(self.code, getattr(self.code.builder, name)(self.value, *others))

    def _arithmetic(self, name: str, other: Operand) -> Vector:
        return self._emit(_FLOAT_OPS[name] if self.is_float else name, self._like(other))

    def __add__(self, other: Operand) -> Vector:
        return self._arithmetic("add", other)

    def __sub__(self, other: Operand) -> Vector:
        return self._arithmetic("sub", other)

    def __mul__(self, other: Operand) -> Vector:
        return self._arithmetic("mul", other)

    def __rsub__(self, other: float) -> Vector:
        return Vector(self.code, self._like(other)) - self

    def __truediv__(self, other: Operand) -> Vector:
        return self._emit("fdiv", self._like(other))

    def __rtruediv__(self, other: float) -> Vector:
        return Vector(self.code, self._like(other)) / self

    def __neg__(self) -> Vector:
        return self._emit("fneg")

    def __and__(self, other: Operand) -> Vector:
        return self._emit("and_", self._like(other))

    def __or__(self, other: Operand) -> Vector:
        return self._emit("or_", self._like(other))

    def __xor__(self, other: Operand) -> Vector:
        return self._emit("xor", self._like(other))

    def __invert__(self) -> Vector:
        return self._emit("not_")

    def __lshift__(self, bits: int) -> Vector:
        return self._emit("shl", self._like(bits)) if bits else self

    def __rshift__(self, bits: int) -> Vector:
        """Logical: zeros come in."""
        return self._emit("lshr", self._like(bits)) if bits else self

    def _compare(self, operator: str, other: Operand) -> Vector:
        if not self.is_float:
            return self._emit_compare("icmp_signed", operator, other)
        return self._emit_compare("fcmp_unordered" if operator == "!=" else "fcmp_ordered", operator, other)

    def _emit_compare(self, name: str, operator: str, other: Operand) -> Vector:
        return Vector(self.code, getattr(self.code.builder, name)(operator, self.value, self._like(other)))

    def __lt__(self, other: Operand) -> Vector:
        return self._compare("<", other)

    def __gt__(self, other: Operand) -> Vector:
        return self._compare(">", other)

    def __eq__(self, other: object) -> Vector:  # type: ignore[override]
        return self._compare("==", cast(Operand, other))

    def __ne__(self, other: object) -> Vector:  # type: ignore[override]
        return self._compare("!=", cast(Operand, other))

    __hash__ = None  # type: ignore[assignment]

    def bits(self) -> Vector:
        """The bit patterns of floats as integers."""
        return self._emit("bitcast", self.code.type(I32))

    def as_float(self) -> Vector:
        """Integers read as the bit patterns of floats."""
        return self._emit("bitcast", self.code.type(F32))

    def to_float(self) -> Vector:
        """Integers as floats, rounded to nearest."""
        return self._emit("sitofp", self.code.type(F32))

    def to_int(self) -> Vector:
        """Floats truncated to integers; beyond their range a lane is undefined."""
        return self._emit("fptosi", self.code.type(I32))

    def ones(self) -> Vector:
        """A mask as integers: 1 where it is set."""
        return self._emit("zext", self.code.type(I32))

    def __abs__(self) -> Vector:
        return (self.bits() & _MAGNITUDE).as_float()

    def sqrt(self) -> Vector:
        """The square root, correctly rounded."""
        signature = ir.FunctionType(self.value.type, [self.value.type])
        name = f"llvm.sqrt.v{self.code.lanes}f32"
        function = self.code.module.globals.get(name) or ir.Function(self.code.module, signature, name)
        return Vector(self.code, self.code.builder.call(function, [self.value]))

    def at_most(self, top: int) -> Vector:
        """Integers, cut off at `top`."""
        return select(self > top, top, self)

    def at_least(self, bottom: int) -> Vector:
        """Integers, raised to `bottom`."""
        return select(self < bottom, bottom, self)

    def nonfinite(self) -> Vector:
        """Where floats are infinite or no number."""
        return (self.bits() & _EXPONENT) == _EXPONENT


Operand = Vector | float | int | np.float32


def constant(type_: Any, value: float | int | np.float32) -> Any:
    """The same number in every lane; floats are rounded to float32."""
    element = float(np.float32(value)) if type_.element == F32 else int(value)
    return ir.Constant(type_, [element] * type_.count)


def select(mask: Vector, then: Operand, otherwise: Operand) -> Vector:
    """`then` where the mask is set, `otherwise` elsewhere; at least one of them is a vector."""
    model = then if isinstance(then, Vector) else cast(Vector, otherwise)
    return Vector(mask.code, mask.code.builder.select(mask.value, model._like(then), model._like(otherwise)))


def higher(a: Vector, b: Vector) -> Vector:
    """The larger of two integers."""
    return select(a > b, a, b)


def lower(a: Vector, b: Vector) -> Vector:
    """The smaller of two integers."""
    return select(a < b, a, b)


class Rows:
    """Scratch memory as structure of arrays: row j holds element j of every lane's block."""

    def __init__(self, code: Code, pointer: Any, count: int) -> None:
        self.code, self.pointer, self.count = code, pointer, count

    def _at(self, row: Any) -> Any:
        return self.code.builder.gep(self.pointer, [self.code.index(row)], inbounds=True)

    def __getitem__(self, row: Any) -> Vector:
        return Vector(self.code, self.code.builder.load(self._at(row), align=ALIGNMENT))

    def __setitem__(self, row: Any, vector: Vector) -> None:
        self.code.builder.store(vector.value, self._at(row), align=ALIGNMENT)

    def lane(self, row: Any, lane: Any) -> Any:
        """The scalar in one lane of a row; `row` and `lane` may be running indices."""
        return self.code.builder.load(self._lane(row, lane), align=4)

    def set_lane(self, row: Any, lane: Any, scalar: Any) -> None:
        """Give one lane of a row a new value."""
        self.code.builder.store(scalar, self._lane(row, lane), align=4)

    def _lane(self, row: Any, lane: Any) -> Any:
        element = self.pointer.type.pointee.element.as_pointer()
        return self.code.builder.gep(self.code.builder.bitcast(self._at(row), element), [self.code.index(lane)])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Vector]:
        return (self[row] for row in range(self.count))

    def part(self, first: Any, count: int) -> Rows:
        """Rows `first` to ``first + count - 1``; `first` may be a running index."""
        return Rows(self.code, self._at(first), count)


class Variable:
    """A vector that changes inside of a loop that runs."""

    def __init__(self, code: Code, start: Vector) -> None:
        self._rows = code.rows(1, start.value.type.element)
        self.set(start)

    def get(self) -> Vector:
        """Its value now."""
        return self._rows[0]

    def set(self, vector: Vector, where: Vector | None = None) -> None:
        """Give it a new value, or only the lanes of a mask."""
        self._rows[0] = vector if where is None else select(where, vector, self.get())


class Code:
    """The function that is being written: `lanes` blocks at a time."""

    def __init__(self, module: Any, builder: Any, lanes: int) -> None:
        self.module, self.builder, self.lanes = module, builder, lanes
        self._entry = builder.block

    def text(self) -> str:
        """LLVM's text of the module, with registers of 512 bits where they are; LLVM shuns them on some processors."""
        wide = ' "min-legal-vector-width"="512" "prefer-vector-width"="512"'
        lines = str(self.module).split("\n")
        return "\n".join(f"{line}{wide}" if line.startswith("define") else line for line in lines)

    def type(self, element: Any) -> Any:
        """The vector type of that element."""
        return ir.VectorType(element, self.lanes)

    def index(self, value: Any) -> Any:
        """A 64-bit integer: a constant, or the running index of a loop."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def scaled(self, index: Any, factor: int, offset: int = 0) -> Any:
        """``factor * index + offset`` of a running index."""
        product = self.builder.mul(self.index(index), self.index(factor))
        return self.builder.add(product, self.index(offset))

    def f32(self, value: float) -> Vector:
        """A constant of float32."""
        return Vector(self, constant(self.type(F32), value))

    def i32(self, value: int) -> Vector:
        """A constant of int32."""
        return Vector(self, constant(self.type(I32), value))

    def load(self, pointer: Any, first: Any) -> Vector:
        """Float32 `first` and on from `pointer`, side by side in the lanes; `first` may be a running index."""
        place = self.builder.gep(pointer, [self.index(first)])
        return Vector(self, self.builder.load(self.builder.bitcast(place, self.type(F32).as_pointer()), align=4))

    def word(self, masks: Sequence[Vector]) -> Any:
        """Masks as the bits of one integer of 32 bits, the first lane of the first lowest."""
        word = ir.Constant(I32, 0)
        for k, mask in enumerate(masks):
            bits = self.builder.zext(self.builder.bitcast(mask.value, ir.IntType(self.lanes)), I32)
            word = self.builder.or_(word, self.builder.shl(bits, ir.Constant(I32, k * self.lanes)))
        return word

    def rows(self, count: int, element: Any = F32) -> Rows:
        """New scratch memory."""
        with self.builder.goto_block(self._entry):
            pointer = self.builder.alloca(self.type(element), count)
        pointer.align = ALIGNMENT
        return Rows(self, pointer, count)

    def scalar(self, type_: Any, start: int) -> Any:
        """New memory for one integer, whose value is `start` from here on."""
        with self.builder.goto_block(self._entry):
            pointer = self.builder.alloca(type_)
        self.builder.store(ir.Constant(type_, start), pointer)
        return pointer

    def smallest(self, vector: Vector) -> Any:
        """The smallest of the lanes, as unsigned integers: a scalar."""
        name = f"vector.reduce.umin.v{self.lanes}i32"
        return self.builder.call(self._intrinsic(name, I32, vector.value), [vector.value])

    def largest(self, vector: Vector) -> Any:
        """The largest of the lanes, as signed integers: a scalar."""
        name = f"vector.reduce.smax.v{self.lanes}i32"
        return self.builder.call(self._intrinsic(name, I32, vector.value), [vector.value])

    def first(self, mask: Vector) -> Any:
        """The number of the first lane in which a mask is set, an integer of 32 bits."""
        bits = self.builder.zext(self.builder.bitcast(mask.value, ir.IntType(self.lanes)), I32)
        return self.builder.cttz(bits, ir.Constant(I1, 1))

    def _intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.module.globals.get(f"llvm.{name}") or ir.Function(self.module, signature, f"llvm.{name}")

    def variable(self, start: Vector) -> Variable:
        """A vector that may change in a loop."""
        return Variable(self, start)

    @contextmanager
    def loop(self, count: Any, start: Any = 0) -> Iterator[Any]:
        """Run the body for each index from `start` to ``count - 1``, at least once."""
        builder, before = self.builder, self.builder.block
        body, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        index = builder.phi(I64)
        index.add_incoming(self.index(start), before)
        yield index
        following = builder.add(index, ir.Constant(I64, 1))
        index.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, self.index(count)), body, after)
        builder.position_at_end(after)

    @contextmanager
    def rounds(self, most: int) -> Iterator[Variable]:
        """Run the body until it leaves the mask it is given empty, at most `most` times."""
        changed = self.variable(Vector(self, constant(self.type(I1), 0)))
        builder, before = self.builder, self.builder.block
        body, after = builder.append_basic_block("round"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        index = builder.phi(I64)
        index.add_incoming(ir.Constant(I64, 1), before)
        changed.set(Vector(self, constant(self.type(I1), 0)))
        yield changed
        again = builder.and_(self.any(changed.get()), builder.icmp_signed("<", index, self.index(most)))
        index.add_incoming(builder.add(index, ir.Constant(I64, 1)), builder.block)
        builder.cbranch(again, body, after)
        builder.position_at_end(after)

    def any(self, mask: Vector) -> Any:
        """A single bit: is the mask set in any lane?"""
        width = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(mask.value, width), ir.Constant(width, 0))

    @contextmanager
    def where_any(self, mask: Vector) -> Iterator[None]:
        """Skip the body where the mask is set in no lane; the body must change nothing in the other lanes."""
        with self.builder.if_then(self.any(mask)):
            yield

    def table(self, values: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> Table:
        """Constants, one a row, each broadcast to every lane when it is read."""
        element = F32 if values.dtype == np.float32 else I32
        numbers = [v.item() for v in values]
        array = ir.Constant(ir.ArrayType(element, len(values)), numbers)
        variable = ir.GlobalVariable(self.module, array.type, self.module.get_unique_name("table"))
        variable.initializer, variable.global_constant, variable.linkage = array, True, "internal"
        return Table(self, self.builder.gep(variable, [ir.Constant(I32, 0)] * 2), len(values))

    def broadcast(self, scalar: Any) -> Vector:
        """One number in every lane."""
        undefined = ir.Constant(self.type(scalar.type), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return Vector(self, self.shuffle(first, undefined, [0] * self.lanes))

    def shuffle(self, a: Any, b: Any, places: Sequence[int]) -> Any:
        """Elements of a (0 and up) and of b (after those of a)."""
        mask = ir.Constant(ir.VectorType(I32, len(places)), list(places))
        return self.builder.shuffle_vector(a, b, mask)


class Table(Rows):
    """Constants that are read as vectors."""

    def __getitem__(self, row: Any) -> Vector:
        return self.code.broadcast(self.scalar(row))

    def scalar(self, row: Any) -> Any:
        """The constant itself."""
        return self.code.builder.load(self._at(row))

    def lookup(self, places: Vector) -> Vector:
        """The constant at each lane's own place."""
        builder = self.code.builder
        result = ir.Constant(self.code.type(self.pointer.type.pointee), ir.Undefined)
        for lane in range(self.code.lanes):
            at = ir.Constant(I32, lane)
            place = builder.sext(builder.extract_element(places.value, at), I64)
            result = builder.insert_element(result, builder.load(self._at(place)), at)
        return Vector(self.code, result)


__all__ = [
    "ALIGNMENT",
    "F32",
    "F64",
    "I1",
    "I8",
    "I16",
    "I32",
    "I64",
    "Code",
    "Operand",
    "Rows",
    "Table",
    "Variable",
    "Vector",
    "constant",
    "higher",
    "lower",
    "select",
]
