"""Products of 16-bit integers, exact: the kernel behind `edgekit.pipeline.rounding.multiply`.

Two neighbours of a row are one word of 32 bits; the products of a word's halves are added, and the words of a piece of
a row after one another, in 32 bits, which never overflow. A tile of sums stays in registers for the whole piece; the
rows of the second factor are copied first so that the same word of many rows lies side by side.
"""

from __future__ import annotations

from typing import Any

import attrs
from llvmlite import ir

from edgekit_numba.kernels import function
from edgekit_numba.layout import turned
from edgekit_numba.products import WIDE, tile_rows
from edgekit_numba.vectors import F32, I16, I32, I64, Code

#: Words of a piece: 128 products of magnitudes below 4096 are below 2**31.
WORDS = 64


@attrs.frozen
class IntegerProduct:
    """The kernel ``name(out, out_stride, b, b_stride, a, a_stride, scratch, tiles, panels, words)``.

    Strides of `out` in floats, of `a` and `b` in words. A panel is `WIDE` registers of rows of `a`, which are columns
    of `out`; a tile is `tile_rows` rows of `b`. The scratch memory holds a panel of a piece.

    Attributes:
        name: of the function.
    """

    name: str = "product_int16"

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        words = I32.as_pointer()
        arguments = [F32.as_pointer(), I64, words, I64, words, I64, words, I64, I64, I64]
        with function(self.name, arguments, lanes) as (code, given):
            out, out_stride, b, b_stride, a, a_stride, scratch, tiles, panels, count = given
            builder, tile = code.builder, _Tile(code, tile_rows(lanes))
            pieces = builder.udiv(builder.add(count, code.index(WORDS - 1)), code.index(WORDS))
            with code.loop(panels) as panel:
                first = builder.mul(panel, code.index(lanes * WIDE))
                with code.loop(pieces) as piece:
                    start = builder.mul(piece, code.index(WORDS))
                    left = builder.sub(count, start)
                    whole = builder.icmp_signed("<", code.index(WORDS), left)
                    words_here = builder.select(whole, code.index(WORDS), left)
                    rows = builder.gep(a, [builder.add(builder.mul(first, a_stride), start)])
                    tile.gather(rows, a_stride, scratch, words_here)
                    with code.loop(tiles) as row:
                        top = builder.mul(row, code.index(tile.rows))
                        corner = builder.add(builder.mul(top, out_stride), first)
                        factors = builder.gep(b, [builder.add(builder.mul(top, b_stride), start)])
                        tile.compute(builder.gep(out, [corner]), out_stride, factors, b_stride, scratch, words_here)
        return code.text()


@attrs.frozen
class _Tile:
    """A tile of the result: `rows` times `WIDE` registers."""

    code: Code
    rows: int

    @property
    def _width(self) -> int:
        return self.code.lanes

    def _vector(self, pointer: Any, offset: int, element: Any) -> Any:
        builder = self.code.builder
        place = builder.gep(pointer, [self.code.index(offset)])
        return builder.bitcast(place, ir.VectorType(element, self._width).as_pointer())

    def gather(self, a: Any, stride: Any, scratch: Any, words: Any) -> None:
        """Copy a panel, so that the same word of its rows lies side by side: four words at a time, the rest singly."""
        code, builder = self.code, self.code.builder
        across, floats = self._width * WIDE, builder.bitcast(a, F32.as_pointer())
        whole = builder.and_(words, code.index(~3))
        there = builder.icmp_signed(">", whole, code.index(0))
        with builder.if_then(there), code.loop(builder.lshr(whole, code.index(2))) as four:
            first = builder.mul(four, code.index(4))
            for part in range(WIDE):
                rows = builder.gep(floats, [builder.mul(stride, code.index(part * self._width))])
                for word, vector in enumerate(turned(code, rows, stride, first, align=2)):
                    at = builder.mul(builder.add(first, code.index(word)), code.index(across))
                    place = self._vector(builder.gep(scratch, [at]), part * self._width, F32)
                    builder.store(vector.value, place, align=4)
        with builder.if_then(builder.icmp_signed("<", whole, words)), code.loop(across) as row:
            source, target = builder.gep(a, [builder.mul(row, stride)]), builder.gep(scratch, [row])
            with code.loop(words, whole) as word:
                value = builder.load(builder.gep(source, [word]), align=2)
                builder.store(value, builder.gep(target, [builder.mul(word, code.index(across))]), align=4)

    def compute(self, out: Any, out_stride: Any, b: Any, b_stride: Any, panel: Any, words: Any) -> None:
        """Add the products of a piece to one tile."""
        code, builder = self.code, self.code.builder
        sums_type = ir.VectorType(I32, self._width)
        factors = [builder.gep(b, [builder.mul(code.index(r), b_stride)]) for r in range(self.rows)]
        entry = builder.block
        body, after = builder.append_basic_block("word"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        word = builder.phi(I64)
        word.add_incoming(code.index(0), entry)
        sums = [builder.phi(sums_type) for _ in range(self.rows * WIDE)]
        columns = builder.gep(panel, [builder.mul(word, code.index(self._width * WIDE))])
        values = [builder.load(self._vector(columns, part * self._width, I32), align=4) for part in range(WIDE)]
        added = []
        for r, row in enumerate(factors):
            factor = code.broadcast(builder.load(builder.gep(row, [word]), align=2)).value
            pairs = [self._pairs(factor, value) for value in values]
            added += [builder.add(sums[r * WIDE + part], pair) for part, pair in enumerate(pairs)]
        for phi, total in zip(sums, added, strict=True):
            phi.add_incoming(ir.Constant(sums_type, [0] * self._width), entry)
            phi.add_incoming(total, body)
        following = builder.add(word, code.index(1))
        word.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, words), body, after)
        builder.position_at_end(after)
        for r in range(self.rows):
            line = builder.gep(out, [builder.mul(code.index(r), out_stride)])
            for part in range(WIDE):
                place = self._vector(line, part * self._width, F32)
                total = builder.sitofp(added[r * WIDE + part], ir.VectorType(F32, self._width))
                builder.store(builder.fadd(builder.load(place, align=4), total), place, align=4)

    def _pairs(self, a: Any, b: Any) -> Any:
        """The products of the low and of the high halves of words, added: one instruction on x86."""
        builder, count = self.code.builder, 2 * self._width
        halves, wide = ir.VectorType(I16, count), ir.VectorType(I32, count)
        products = builder.mul(*(builder.sext(builder.bitcast(x, halves), wide) for x in (a, b)))
        even, odd = (self.code.shuffle(products, products, range(first, count, 2)) for first in (0, 1))
        return builder.add(even, odd)


def emitters() -> list[IntegerProduct]:
    """The kernels of this module."""
    return [IntegerProduct()]


__all__ = ["WORDS", "IntegerProduct", "emitters"]
