"""Products whose sums have one order: the kernel behind `edgekit.pipeline.rounding.accumulate`.

    out[i, j] = (...((out[i, j] + b[0, i] * a[0, j]) + b[1, i] * a[1, j]) + ...)

Each product and each sum is rounded once, so the bits do not depend on the width of the registers, and are those of
numpy's multiplication and addition. A tile of the result stays in registers for all k; a tile's columns of `a` are
copied next to each other first, some rows at a time, so that they stream.
"""

from __future__ import annotations

from typing import Any

import attrs
from llvmlite import ir

from edgekit_numba.kernels import function
from edgekit_numba.vectors import F32, F64, I32, I64, Code

#: Registers of a row of a tile.
WIDE = 2


@attrs.frozen
class Product:
    """The kernel ``name(out, out_stride, b, b_stride, a, a_stride, scratch, n, panels, k, depth)``.

    Strides are in elements. A panel is `WIDE` registers of columns; `a` and `out` have whole panels, `n` is a whole
    number of tiles. `depth` of the k products are added up before the next panel; `scratch` holds as many rows of one.

    Attributes:
        name: of the function.
        element: float or double.
    """

    name: str
    element: Any

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        width = lanes if self.element == F32 else lanes // 2
        pointer = self.element.as_pointer()
        arguments = [pointer, I64, pointer, I64, pointer, I64, pointer, I64, I64, I64, I64]
        with function(self.name, arguments, lanes) as (code, given):
            out, out_stride, b, b_stride, a, a_stride, scratch, tiles, panels, k, depth = given
            tile, builder = _Tile(code, self.element, width, tile_rows(lanes)), code.builder
            chunks = builder.udiv(builder.add(k, builder.sub(depth, code.index(1))), depth)
            with code.loop(chunks) as chunk, code.loop(panels) as panel:
                start, first = builder.mul(chunk, depth), builder.mul(panel, code.index(width * WIDE))
                left = builder.sub(k, start)
                count = builder.select(builder.icmp_signed("<", left, depth), left, depth)
                tile.gather(
                    builder.gep(a, [builder.add(builder.mul(start, a_stride), first)]), a_stride, scratch, count
                )
                factors = builder.gep(b, [builder.mul(start, b_stride)])
                with code.loop(tiles) as row:
                    top = builder.mul(row, code.index(tile.rows))
                    corner = builder.add(builder.mul(top, out_stride), first)
                    tile.compute(
                        builder.gep(out, [corner]), out_stride, builder.gep(factors, [top]), b_stride, scratch, count
                    )
        return code.text()


def tile_rows(lanes: int) -> int:
    """Rows of a tile: as many as registers hold."""
    return 8 if lanes == 16 else 4


@attrs.frozen
class _Tile:
    """A tile of the result: `rows` times `WIDE` registers."""

    code: Code
    element: Any
    width: int
    rows: int

    @property
    def _type(self) -> Any:
        return ir.VectorType(self.element, self.width)

    def _load(self, pointer: Any, offset: Any) -> Any:
        builder = self.code.builder
        place = builder.bitcast(builder.gep(pointer, [self.code.index(offset)]), self._type.as_pointer())
        return builder.load(place, align=4)

    def _store(self, value: Any, pointer: Any, offset: Any) -> None:
        builder = self.code.builder
        place = builder.bitcast(builder.gep(pointer, [self.code.index(offset)]), self._type.as_pointer())
        builder.store(value, place, align=4)

    def _broadcast(self, scalar: Any) -> Any:
        builder, undefined = self.code.builder, ir.Constant(self._type, ir.Undefined)
        first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        return builder.shuffle_vector(first, undefined, zeros)

    def gather(self, a: Any, stride: Any, scratch: Any, k: Any) -> None:
        """Copy a panel of `a`, so that its rows lie next to each other."""
        builder = self.code.builder
        with self.code.loop(k) as step:
            source = builder.gep(a, [builder.mul(step, stride)])
            target = builder.gep(scratch, [builder.mul(step, self.code.index(self.width * WIDE))])
            for part in range(WIDE):
                self._store(self._load(source, part * self.width), target, part * self.width)

    def compute(self, out: Any, out_stride: Any, b: Any, b_stride: Any, panel: Any, k: Any) -> None:
        """Add the k products to one tile."""
        code, builder = self.code, self.code.builder
        rows = [builder.gep(out, [builder.mul(code.index(r), out_stride)]) for r in range(self.rows)]
        before = [self._load(row, part * self.width) for row in rows for part in range(WIDE)]
        entry = builder.block
        body, after = builder.append_basic_block("k"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        step = builder.phi(I64)
        step.add_incoming(code.index(0), entry)
        sums = [builder.phi(self._type) for _ in before]
        for phi, start in zip(sums, before, strict=True):
            phi.add_incoming(start, entry)
        columns = builder.gep(panel, [builder.mul(step, code.index(self.width * WIDE))])
        factors = builder.gep(b, [builder.mul(step, b_stride)])
        values = [self._load(columns, part * self.width) for part in range(WIDE)]
        for r in range(self.rows):
            factor = self._broadcast(builder.load(builder.gep(factors, [code.index(r)])))
            for part in range(WIDE):
                phi = sums[r * WIDE + part]
                phi.add_incoming(builder.fadd(phi, builder.fmul(factor, values[part])), body)
        following = builder.add(step, code.index(1))
        step.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, k), body, after)
        builder.position_at_end(after)
        for r, row in enumerate(rows):
            for part in range(WIDE):
                final = sums[r * WIDE + part].incomings[1][0]
                self._store(final, row, part * self.width)


def emitters() -> list[Product]:
    """The kernels of this module."""
    return [Product("product_float32", F32), Product("product_float64", F64)]


__all__ = ["WIDE", "Product", "emitters", "tile_rows"]
