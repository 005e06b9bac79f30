"""QDQ int4: blocks of 4 bits for DequantizeLinear, as ONNX Runtime's default weight-only quantizer computes them.

    part           dtype           shape                       holds
    codes          uint8           [ceil(cols * rows / 2)]     int4 (symmetric) or uint4, low nibble first
    scale          the source's    [blocks, rows]              s
    zero_point     uint8           [ceil(blocks * rows / 2)]   z, uint4, low nibble first; asymmetric only

    grid           s, z and r as in `_grid`, with b = 4
    encode         q = clip(int(roundf(w * r)) + z, 0, 15)       half away from zero
    stored         asymmetric q; symmetric, where z = 8, the two's complement of q - 8
    decode         (q - z) * s

Ties are rounded differently from MatMulNBits, because z is added after rounding. Infinity and NaN become the smallest
int32, as on x86, and so the code 0. The stored order is the operator's, [in, out], the transpose of the rows here. So a
byte holds the codes of two rows, and a tensor cannot be encoded in row slices.

Source: onnxruntime 1.32.0, `DefaultWeightOnlyQuantizer.qbits_block_quant` (QDQ) and, beneath it, MLAS's
`MlasQDQQuantizeBlockwise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import row_chunks, spans
from edgekit.numerics.rounding import half_away
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.reference.onnx import _grid
from edgekit.typing import F32, F64, U8, Array

_BITS = 4
#: z of a symmetric grid, and the sign bit of int4.
_MIDDLE = np.uint8(8)
#: Number of elements in a slab of columns; bounds the memory besides input and output.
_SLAB = 1 << 21


def encode(x: Array, precision: Precision) -> dict[str, Array]:
    """Encode rows [rows, cols] of float32, float16 or bfloat16."""
    rows, cols = x.shape
    packed = np.empty(-(-cols * rows // 2), np.uint8)
    scale = np.empty((-(-cols // _size(precision)), rows), x.dtype)
    zero_point = np.empty(scale.shape, np.uint8)
    for columns, blocks, stored in _slabs(precision, rows, cols):
        codes = np.empty((columns.stop - columns.start, rows), np.uint8)
        for chunk in row_chunks(rows, len(codes)):
            part = codes[:, chunk].T, scale[blocks, chunk].T, zero_point[blocks, chunk].T
            _encode_rows(as_float32(x[chunk, columns]), precision, *part)
        packed[stored] = pack_lsb((codes ^ _sign(precision)).reshape(-1), _BITS)
    parts: dict[str, Array] = {"codes": packed, "scale": scale}
    return parts if precision.symmetric else {**parts, "zero_point": pack_lsb(zero_point.reshape(-1), _BITS)}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]."""
    rows, cols = shape
    scale, zero_point = as_float32(parts["scale"]), _zero_points(parts, precision)
    values = np.empty(shape, np.float32)
    for columns, blocks, stored in _slabs(precision, rows, cols):
        width = columns.stop - columns.start
        codes = unpack_lsb(parts["codes"][stored], _BITS, width * rows).reshape(width, rows)
        for chunk in row_chunks(rows, width):
            part = np.ascontiguousarray(codes[:, chunk].T) ^ _sign(precision)
            values[chunk, columns] = _decode_rows(part, scale[blocks, chunk].T, zero_point[blocks, chunk].T, precision)
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step; beyond the last level (symmetric grids have one less on one side), the distance to it."""
    block = np.arange(x.shape[1]) // _size(precision)
    return _grid.error_bound(x, parts["scale"][block].T, _zero_points(parts, precision)[block].T, precision)


def _encode_rows(x: F32, precision: Precision, codes: U8, scale: Array, zero_point: U8) -> None:
    """Encode whole blocks of rows [n, width] into views [n, width], [n, blocks], [n, blocks]."""
    for columns, blocks, width in spans(x.shape[1], _size(precision)):
        values = x[:, columns].reshape(len(x), -1, width)
        grid = _grid.fit(values, precision, scale.dtype)
        scale[:, blocks], zero_point[:, blocks] = grid.scale, grid.zero_point
        codes[:, columns] = _quantize(values, grid).reshape(len(x), -1)


def _decode_rows(codes: U8, scale: F32, zero_point: F32, precision: Precision) -> F32:
    """Return the values, float32 [n, width], of codes [n, width] with scales and zero points [n, blocks]."""
    values = codes.astype(np.float32)
    for columns, blocks, width in spans(codes.shape[1], _size(precision)):
        levels = values[:, columns].reshape(len(codes), -1, width)
        levels -= zero_point[:, blocks, None]
        levels *= scale[:, blocks, None]
        values[:, columns] = levels.reshape(len(codes), -1)
    return values


def _quantize(values: F32, grid: _grid.Grid) -> U8:
    """Return the codes of blocks [rows, blocks, width], before conversion to two's complement."""
    q = half_away(values * grid.reciprocal[..., None])
    lost = ~np.isfinite(q)
    if lost.any():
        q[lost] = -np.inf
    q += grid.zero_point[..., None]
    np.clip(q, np.float32(0), np.float32(15), out=q)
    return q.astype(np.uint8)


def _slabs(precision: Precision, rows: int, cols: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices (columns, blocks, bytes) of slabs: an even number of whole blocks, so that each starts at a byte."""
    pair = 2 * _size(precision)
    width = pair * max(1, _SLAB // (pair * rows))
    for start in range(0, cols, width):
        stop = min(start + width, cols)
        blocks = slice(start // _size(precision), -(-stop // _size(precision)))
        yield slice(start, stop), blocks, slice(start * rows // 2, -(-stop * rows // 2))


def _zero_points(parts: Mapping[str, Array], precision: Precision) -> F32:
    """Return the zero points, float32 [blocks, rows]."""
    shape = parts["scale"].shape
    if precision.symmetric:
        return np.full(shape, _MIDDLE, np.float32)
    return unpack_lsb(parts["zero_point"], _BITS, shape[0] * shape[1]).reshape(shape).astype(np.float32)


def _sign(precision: Precision) -> np.uint8:
    return _MIDDLE if precision.symmetric else np.uint8(0)


def _size(precision: Precision) -> int:
    assert precision.block is not None
    return precision.block


__all__ = ["bound", "decode", "encode"]
