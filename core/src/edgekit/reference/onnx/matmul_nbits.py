"""MatMulNBits: blocks of 2, 4 or 8 bits along a row, as ONNX Runtime's default weight-only quantizer computes them.

    part           dtype               shape                             holds
    B              uint8               [rows, blocks, block * b / 8]     codes, LSB first
    scales         the source's        [rows, blocks]                    s
    zero_points    uint8               [rows, ceil(blocks * b / 8)]      z, LSB first; asymmetric only

    grid           s, z and r as in `_grid`
    encode         q = roundf(clip(w * r + z, 0, 2^b - 1))       half away from zero; NaN becomes 0
    decode         (q - z) * s                                   z = 2^(b-1) if symmetric

A row here is a column of the operator's weight [K, N]. If the block does not divide the row, missing elements are
ignored for min and max, and their codes are 0, except in the last byte that holds a code: there they repeat the byte
before, unless the last byte is the first of `block` bytes. Unused zero points are 2^(b-1).

Source: onnxruntime 1.32.0, `DefaultWeightOnlyQuantizer.qbits_block_quant` (QOperator) and, beneath it, MLAS's
`MlasQuantizeBlockwise`. Blocks of 512 follow the same rule; the quantizer refuses them, the operator runs them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import row_chunks, spans
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.reference.onnx import _grid
from edgekit.typing import F32, F64, U8, Array


def encode(x: Array, precision: Precision) -> dict[str, Array]:
    """Encode rows [rows, cols] of float32, float16 or bfloat16."""
    rows, cols = x.shape
    size, blocks = _size(precision), _blocks(precision, cols)
    packed = np.empty((rows, blocks * size * precision.bits // 8), np.uint8)
    scales = np.empty((rows, blocks), x.dtype)
    zero_points = np.empty((rows, blocks), np.uint8)
    for chunk in row_chunks(rows, cols):
        codes = np.zeros((chunk.stop - chunk.start, blocks * size), np.uint8)
        wide = as_float32(x[chunk])
        for columns, numbers, width in spans(cols, size):
            values = wide[:, columns].reshape(len(wide), -1, width)
            grid = _grid.fit(values, precision, x.dtype)
            scales[chunk, numbers], zero_points[chunk, numbers] = grid.scale, grid.zero_point
            codes[:, columns] = _quantize(values, grid, precision).reshape(len(wide), -1)
        packed[chunk] = pack_lsb(codes, precision.bits)
    _repeat_in_last_byte(packed, precision, cols)
    parts: dict[str, Array] = {"B": packed.reshape(rows, blocks, -1), "scales": scales}
    return parts if precision.symmetric else {**parts, "zero_points": _pack_zero_points(zero_points, precision)}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]."""
    rows, cols = shape
    packed, scales = parts["B"].reshape(rows, -1), as_float32(parts["scales"])
    zero_points = _zero_points(parts, precision)
    values = np.empty(shape, np.float32)
    for chunk in row_chunks(rows, cols):
        codes = unpack_lsb(packed[chunk], precision.bits, cols)
        for columns, numbers, width in spans(cols, precision.block):
            levels = codes[:, columns].reshape(len(codes), -1, width).astype(np.float32)
            levels -= zero_points[chunk, numbers, None]
            levels *= scales[chunk, numbers, None]
            values[chunk, columns] = levels.reshape(len(codes), -1)
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step; beyond the last level (symmetric grids have one less on one side), the distance to it."""
    block = np.arange(x.shape[1]) // _size(precision)
    return _grid.error_bound(x, parts["scales"][:, block], _zero_points(parts, precision)[:, block], precision)


def _quantize(values: F32, grid: _grid.Grid, precision: Precision) -> U8:
    """Return the codes of blocks [rows, blocks, width], uint8."""
    q = values * grid.reciprocal[..., None]
    q += np.float32(_grid.middle(precision)) if precision.symmetric else grid.zero_point[..., None]
    np.fmax(q, np.float32(0), out=q)  # fmax: NaN, which 0 times infinity is, becomes 0
    np.minimum(q, np.float32(_grid.top(precision)), out=q)
    q += _grid.HALF
    return q.astype(np.uint8)


def _repeat_in_last_byte(packed: U8, precision: Precision, cols: int) -> None:
    """Fill missing codes of the last byte that holds a code with those of the byte before, within `block` bytes."""
    last, used = divmod(cols * precision.bits, 8)
    if used and last % _size(precision):
        packed[:, last] |= packed[:, last - 1] & np.uint8(0xFF << used & 0xFF)


def _pack_zero_points(zero_points: U8, precision: Precision) -> U8:
    missing = -zero_points.shape[1] % (8 // precision.bits)
    padded = np.pad(zero_points, ((0, 0), (0, missing)), constant_values=_grid.middle(precision))
    return pack_lsb(padded, precision.bits)


def _zero_points(parts: Mapping[str, Array], precision: Precision) -> F32:
    """Return the zero points, float32 [rows, blocks]."""
    if precision.symmetric:
        return np.full(parts["scales"].shape, _grid.middle(precision), np.float32)
    unpacked = unpack_lsb(parts["zero_points"], precision.bits, parts["scales"].shape[1])
    return unpacked.astype(np.float32)


def _size(precision: Precision) -> int:
    assert precision.block is not None
    return precision.block


def _blocks(precision: Precision, cols: int) -> int:
    return -(-cols // _size(precision))


__all__ = ["bound", "decode", "encode"]
