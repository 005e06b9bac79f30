"""Matrices of bitsandbytes' 4-bit floats, as bitsandbytes and ONNX Runtime's MatMulBnb4 store them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from edgekit.numerics.bits import pack_lsb
from edgekit.precision import find_precision
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import F32, U8, Array

_KINDS = {"nf4": "nf4", "fp4": "bnb_fp4"}


def four_bit_floats(
    name: str,
    shape: tuple[int, ...],
    kind: Literal["nf4", "fp4"],
    block: int,
    codes: Tensor,
    scales: Callable[[int, int], F32],
    nbytes: int,
) -> EncodedTensor:
    """Return a matrix of bitsandbytes' 4-bit floats under one scale a block, in ``packed:nf4`` or ``packed:bnb_fp4``.

    Blocks run on over the ends of rows. Where they do not divide a row they are read as groups of the greatest common
    divisor of both, which share their block's scale.

    Args:
        name: of the matrix.
        shape: of the matrix [..., out, in].
        kind: ``nf4`` or ``fp4``.
        block: number of elements that share a scale.
        codes: the codes of all elements, row after row; a byte holds two, the first one in its upper half. Any shape
            and type: its bytes are taken.
        scales: returns the scales, float32 [last - first], of blocks ``first:last``.
        nbytes: bytes that the matrix takes in its file, scales included.
    """
    cols = shape[-1]
    group = math.gcd(cols, block)

    def read(start: int, stop: int) -> Mapping[str, Array]:
        found = _codes(codes, start * cols, stop * cols).reshape(stop - start, cols)
        blocks = np.arange(start * cols, stop * cols, group) // block
        first, last = (int(blocks[0]), int(blocks[-1]) + 1) if len(blocks) else (0, 0)
        scale = scales(first, last)[blocks - first].reshape(stop - start, -1)
        return {"codes": pack_lsb(found, 4), "scale": scale}

    return EncodedTensor(name, shape, find_precision(f"packed:{_KINDS[kind]}-g{group}"), nbytes, read)


def _codes(packed: Tensor, first: int, last: int) -> U8:
    """Return the codes of elements ``first:last``."""
    begin, end = first // 2, -(-last // 2)
    held = _bytes(packed, begin, end)
    pairs = np.stack([held >> np.uint8(4), held & np.uint8(15)], axis=-1).reshape(-1)
    return pairs[first - 2 * begin :][: last - first]


def _bytes(packed: Tensor, begin: int, end: int) -> U8:
    """Return bytes ``begin:end`` of a tensor of any shape and type."""
    row = max(1, packed.nbytes // max(1, packed.rows))
    rows = np.ascontiguousarray(packed.read_rows(begin // row, -(-end // row))).reshape(-1).view(np.uint8)
    return rows[begin - begin // row * row :][: end - begin]


__all__ = ["four_bit_floats"]
