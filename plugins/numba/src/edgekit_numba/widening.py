"""float16 and bfloat16 as float32: done to narrow weights first, a piece at a time that stays in the cache."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from edgekit_numba.kernels import function
from edgekit_numba.rounding import from_half
from edgekit_numba.vectors import F32, I16, I32, I64, Vector


@attrs.frozen
class Widening:
    """The kernel ``name(x, out, groups)``: as many elements as the processor has lanes in each group.

    Attributes:
        name: of the function.
        widened: bits of 16 as integers to float32.
    """

    name: str
    widened: Callable[[Vector], Vector]

    def __call__(self, lanes: int) -> str:
        """LLVM's text of the module."""
        arguments = [I16.as_pointer(), F32.as_pointer(), I64]
        with function(self.name, arguments, lanes) as (code, (x, out, groups)), code.loop(groups) as group:
            builder, first = code.builder, code.scaled(group, lanes)
            packed = builder.bitcast(builder.gep(x, [first]), code.type(I16).as_pointer())
            bits = Vector(code, builder.zext(builder.load(packed, align=2), code.type(I32)))
            place = builder.bitcast(builder.gep(out, [first]), code.type(F32).as_pointer())
            builder.store(self.widened(bits).value, place, align=4)
        return code.text()


def emitters() -> list[Widening]:
    """The kernels of this module."""
    return [
        Widening("widen_float16", from_half),
        Widening("widen_bfloat16", lambda bits: (bits << 16).as_float()),
    ]


__all__ = ["Widening", "emitters"]
