"""ggml's block formats: one module per block type, dispatched by kind.

Every type has the single part ``blocks``, uint8 [rows, bytes per row], as a GGUF file stores it. Each module specifies
the type's layout as a numpy structured dtype and works on blocks [blocks, elements]; this module splits rows into
blocks, and blocks into chunks that fit in the cache.

Bit-exact with ggml compiled without contraction of floating-point operations (no FMA in libggml-base, the default on
x86-64), for every finite and infinite input. The grid types (`GRIDS`) are, too, wherever ggml returns bytes:
it aborts the process where no point of a grid is at a finite distance; there the scale d is infinite here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import attrs
import numpy as np

from edgekit.errors import UsageError
from edgekit.numerics.blocks import row_chunks
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.reference.ggml import (
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    iq4_nl,
    iq4_xs,
    mxfp4,
    nvfp4,
    q1_0,
    q2_0,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    tq1_0,
    tq2_0,
)
from edgekit.reference.ggml._importance import Importance, row_power
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F32, F64, U8, Array

# Elements of a chunk. Each try of a search calls numpy 20 to 40 times, so that larger chunks are faster until they
# exceed the second-level cache; the coordinate descent of Q3_K goes row by row, with the shortest calls.
_CHUNK = 1 << 17
_CHUNKS = {"Q3_K": 1 << 18}


class BlockType(Protocol):
    """The interface of a block type's module.

    Attributes:
        SIZE: number of elements in a block.
        LAYOUT: the block's bytes, as a structured dtype.
        IMPORTANCE: what `encode` needs of an importance matrix: ``unused`` for nothing, ``block`` for the importance of
            the block's elements, ``row`` for that and the mean square of the whole row.
    """

    SIZE: int
    LAYOUT: np.dtype[np.void]
    IMPORTANCE: str

    def encode(self, x: F32, importance: Importance | None = None) -> Blocks:
        """Encode blocks [blocks, SIZE] to a structured array [blocks]."""
        ...

    def decode(self, blocks: Blocks) -> F32:
        """Decode a structured array [blocks] to [blocks, SIZE]."""
        ...

    def bound(self, x: F32, blocks: Blocks) -> F64:
        """Return an upper bound of the error of each element, float64 [blocks, SIZE]."""
        ...


TYPES: dict[str, BlockType] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "TQ1_0": tq1_0,
    "TQ2_0": tq2_0,
    "MXFP4": mxfp4,
    "NVFP4": nvfp4,
    "Q1_0": q1_0,
    "Q2_0": q2_0,
}
#: The types whose codes lie on a grid. Those with ``NEEDS_IMPORTANCE`` are not encoded without an importance matrix.
GRIDS: dict[str, BlockType] = {
    "IQ3_S": iq3_s,
    "IQ3_XXS": iq3_xxs,
    "IQ2_S": iq2_s,
    "IQ2_XS": iq2_xs,
    "IQ2_XXS": iq2_xxs,
    "IQ1_M": iq1_m,
    "IQ1_S": iq1_s,
}
_ALL = TYPES | GRIDS


def encode(x: F32, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Encode rows [rows, cols] to the bytes that ggml writes.

    Raises:
        UsageError: the type needs an importance matrix, and there is none.
    """
    kind = _ALL[precision.kind]
    if importance is None and needs_importance(precision.kind):
        raise UsageError(
            f"{precision.name} cannot be encoded without an importance matrix; make one with `edgekit imatrix` "
            "and pass it on (--imatrix FILE, importance=), or choose ggml:IQ2_S or ggml:Q2_K"
        )
    blocks = x.reshape(-1, kind.SIZE)
    out = np.empty((len(blocks), kind.LAYOUT.itemsize), np.uint8)
    with np.errstate(all="ignore"):
        weigh = _weigher(x, importance, kind)
        for part in row_chunks(*blocks.shape, _CHUNKS.get(precision.kind, _CHUNK)):
            out[part] = _bytes(kind.encode(blocks[part], weigh(part)))
    return {"blocks": out.reshape(x.shape[0], -1)}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols], as ggml's ``to_float`` does."""
    kind = _ALL[precision.kind]
    blocks = _structured(parts, kind)
    out = np.empty((len(blocks), kind.SIZE), np.float32)
    with np.errstate(all="ignore"):
        for part in row_chunks(*out.shape):
            out[part] = kind.decode(blocks[part])
    return out.reshape(shape)


def bound(x: F32, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return the block type's bound of the error of each element; its docstring derives it."""
    kind = _ALL[precision.kind]
    values, blocks = x.reshape(-1, kind.SIZE), _structured(parts, kind)
    out = np.empty(values.shape, np.float64)
    with np.errstate(all="ignore"):
        for part in row_chunks(*values.shape):
            out[part] = kind.bound(values[part], blocks[part])
    return out.reshape(x.shape)


def overflowed(parts: Mapping[str, Array], precision: Precision) -> str:
    """Return the name of a field whose float16 scale is not finite in some block; empty if there is none."""
    blocks = _structured(parts, _ALL[precision.kind])
    if precision.kind == "IQ1_M":  # its d lies in pieces in the scales
        return "" if np.isfinite(iq1_m.scale_of(blocks)).all() else "scale d"
    for field, (dtype, *_) in (blocks.dtype.fields or {}).items():
        if dtype == np.float16 and not np.isfinite(blocks[field]).all():
            return f"scale {field}"
    return ""


def needs_importance(kind: str) -> bool:
    """Return whether a type is not encoded without an importance matrix, as ggml does not."""
    return getattr(_ALL[kind], "NEEDS_IMPORTANCE", False)


def _structured(parts: Mapping[str, Array], kind: BlockType) -> Blocks:
    return np.ascontiguousarray(parts["blocks"]).reshape(-1).view(kind.LAYOUT)


def _bytes(blocks: Blocks) -> U8:
    """Return blocks viewed as bytes [blocks, bytes], which numpy copies twenty times faster than structured fields."""
    return blocks.view(np.uint8).reshape(len(blocks), -1)


def _weigher(x: F32, importance: F32 | None, kind: BlockType) -> Callable[[slice], Importance | None]:
    """Return a function from a slice of the blocks of x to their importance."""
    if importance is None or kind.IMPORTANCE == "unused":
        return lambda part: None
    by_block = importance.reshape(-1, kind.SIZE)
    power = row_power(x) if kind.IMPORTANCE == "row" else np.zeros(len(x), np.float32)

    def weigh(part: slice) -> Importance:
        row, block = np.divmod(np.arange(part.start, part.stop), len(by_block))
        return Importance(by_block[block], power[row])

    return weigh


traits = Traits(
    proof="exact: libggml-base of llama-cpp-python 0.3.36",
    bound="half a step of its sub-block under the stored scales; beyond the last level the distance to it",
    overflowed=overflowed,
)


@attrs.frozen
class GridReference:
    """The reference of the grid types; see `edgekit.reference.Reference`.

    Attributes:
        traits: of these types.
    """

    traits: Traits
    TYPES: ClassVar[dict[str, BlockType]] = GRIDS

    encode = staticmethod(encode)
    decode = staticmethod(decode)
    bound = staticmethod(bound)


def grid_reference(kind: str) -> GridReference:
    """Return the reference of a grid type."""
    return _GRID_REFERENCES[needs_importance(kind)]


_GRID_REFERENCES = [
    GridReference(
        Traits(
            proof=traits.proof,
            bound="the distance to the farthest value that its sub-block can hold",
            overflowed=overflowed,
            needs_importance=needed,
        )
    )
    for needed in (False, True)
]

__all__ = [
    "GRIDS",
    "TYPES",
    "BlockType",
    "GridReference",
    "bound",
    "decode",
    "encode",
    "grid_reference",
    "needs_importance",
    "overflowed",
    "traits",
]
