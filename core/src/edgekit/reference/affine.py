"""Textbook affine quantization: 1 to 8 bits, symmetric or not, per tensor, per channel (row) or per group.

    part         dtype    shape                         holds
    codes        uint8    [rows, ceil(cols * b / 8)]    b-bit codes, LSB first, each row padded to whole bytes
    scale        float32  [rows, groups] | [rows, 1] | [1, 1]      (group | channel | tensor)
    zero_point   uint8    as scale                      asymmetric only

A group is `size` neighbours of one row; the last group of a row is shorter where `size` does not divide
cols. All arithmetic is float32, every operation rounded once; rint is half to even; / is a true division.

    symmetric, b >= 2     n = 2^(b-1) - 1     s = max|x| / n
                          q = clip(rint(x / s), -n, n)        stored q + 2^(b-1)        decode  q * s
    symmetric, b = 1      s = mean|x|         q = +1 where x >= 0, else -1   stored 1 or 0   decode  q * s
    asymmetric            n = 2^b - 1         lo = min(x, 0)      hi = max(x, 0)
                          s = (hi - lo) / n   z = clip(rint(-lo / s), 0, n)
                          q = clip(rint(x / s) + z, 0, n)     stored q      decode  (q - z) * s

At the ends of float32: where hi - lo overflows, s = hi / n - lo / n, at most the largest float32; a decoded
value that overflows is the largest float32 of its sign; where s underflows to 0 every code means 0. So every
finite input encodes, and decodes to finite values. One bit asymmetric has two levels: 0 and s, or -s and 0.
mean|x| is summed in float64: over the elements of a group (row) by folding the second half onto the first
until one is left, over the rows of a tensor likewise. That order is the same on every machine.

Idempotence. Encoding decoded values again gives, where the scale is normal (>= 2^-126) and nothing saturated,
symmetric: the same bytes (RN(RN(s n) / n) = s for every significand and every n: checked exhaustively);
asymmetric, for groups that use their first and their last code: the same codes and zero points, and a scale
within two units in the last place. One bit symmetric gives the same bytes for every scale but 0.

Sources: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877), sections 2.1 and 3, for the affine map
with an exact zero; H. Wu et al., "Integer Quantization for Deep Learning Inference", 2020
(arXiv:2004.09602), section 3, for the restricted symmetric range; M. Rastegari et al., "XNOR-Net", ECCV
2016 (arXiv:1603.05279), section 3.1, for one bit: sign(x) with mean|x| minimises the squared error; sign(0)
= +1 as in BinaryConnect (arXiv:1511.00363).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import extent, extremes, row_chunks, spans
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.typing import F32, F64, U8, Array

traits = Traits(
    proof="bounded; equal to a second implementation in plain Python (tests/core/test_affine_properties.py)",
    bound="half a step; beyond the last level the distance to it (1 bit symmetric: ||x| - scale|)",
    searches=False,  # the scale follows from the ends of the range: a row of codes 0 has coarse levels, no overflow
    widens=True,
)


_LARGEST = np.float32(np.finfo(np.float32).max)
# Float32 rounding in one encode and decode, relative to the largest level and absolute among subnormals.
_SLOP, _TINY = 2.0**-22, 2.0**-149


@np.errstate(under="ignore")  # subnormal scales and quotients are intended
def encode(x: Array, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Encode [rows, cols]; importance is ignored. With groups or channels each row is encoded independently."""
    rows, cols = x.shape
    shape = _scale_shape(precision, rows, cols)
    codes = np.empty((rows, -(-cols * precision.bits // 8)), np.uint8)
    scale, zero_point = np.empty(shape, np.float32), np.zeros(shape, np.uint8)
    if not precision.rowwise:
        scale[:], zero_point[:] = _fit_tensor(x, precision)
    for chunk in row_chunks(rows, cols):
        where, values = chunk if precision.rowwise else slice(None), as_float32(x[chunk])
        unpacked = np.empty(values.shape, np.uint8)
        for span, number, width in spans(cols, precision.block):
            blocks = values[:, span].reshape(-1, number.stop - number.start, width)
            if precision.rowwise:
                scale[where, number], zero_point[where, number] = _fit(blocks, precision)
            quantized = _quantize(blocks, scale[where, number], zero_point[where, number], precision)
            unpacked[:, span] = quantized.reshape(len(unpacked), -1)
        codes[chunk] = pack_lsb(unpacked, precision.bits)
    parts: dict[str, Array] = {"codes": codes, "scale": scale}
    return parts if precision.symmetric else {**parts, "zero_point": zero_point}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]: level times scale, saturated at the largest float32."""
    rows, cols = shape
    scale, zero_point = parts["scale"], parts.get("zero_point")
    values = np.empty(shape, np.float32)
    for chunk in row_chunks(rows, cols):
        where = chunk if precision.rowwise else slice(None)
        codes = unpack_lsb(parts["codes"][chunk], precision.bits, cols)
        for span, number, width in spans(cols, precision.block):
            blocks = codes[:, span].reshape(-1, number.stop - number.start, width)
            zero = None if zero_point is None else zero_point[where, number]
            decoded = _dequantize(blocks, scale[where, number], zero, precision)
            values[chunk, span] = decoded.reshape(len(codes), -1)
    return values


def bound(x: F32, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step, or the distance to the last level if x lies beyond; for one bit symmetric ||x| - s|."""
    wide = x.astype(np.float64)
    scale = _per_element(parts["scale"], precision, x.shape[1]).astype(np.float64)
    if precision.symmetric and precision.bits == 1:
        return np.abs(np.abs(wide) - scale)
    lowest, highest = _levels(parts, precision, x.shape[1])
    beyond = np.maximum(wide - highest * scale, lowest * scale - wide)
    nearest = np.minimum(scale / 2, np.abs(wide))  # 0 is always a level
    return np.maximum(beyond, nearest) + (highest - lowest) * _SLOP * scale + _TINY


def _scale_shape(precision: Precision, rows: int, cols: int) -> tuple[int, int]:
    match precision.granularity:
        case "tensor":
            return 1, 1
        case "channel":
            return rows, 1
    assert precision.block is not None
    return rows, -(-cols // precision.block)


def _fit(blocks: F32, precision: Precision) -> tuple[F32, U8]:
    """Scale and zero point [rows, groups] of blocks [rows, groups, width]."""
    if precision.symmetric and precision.bits == 1:
        mean = _folded_sum(np.abs(blocks)) / blocks.shape[-1]
        return mean.astype(np.float32), np.zeros(mean.shape, np.uint8)
    return _parameters(*extremes(blocks), precision)


def _fit_tensor(x: Array, precision: Precision) -> tuple[F32, U8]:
    """Scale and zero point [1, 1] of a whole tensor, without a temporary of its size."""
    if precision.symmetric and precision.bits == 1:
        sums = [_folded_sum(np.abs(as_float32(x[chunk]))) for chunk in row_chunks(*x.shape)]
        mean = _folded_sum(np.concatenate(sums)) / x.size
        return mean.astype(np.float32).reshape(1, 1), np.zeros((1, 1), np.uint8)
    return _parameters(*extent(x), precision)


def _folded_sum(values: Array) -> F64:
    """Sum over the last axis in float64, in the same order on every machine."""
    total = values.astype(np.float64)
    while (count := total.shape[-1]) > 1:
        half = (count + 1) // 2
        total[..., : count - half] += total[..., half:]
        total = total[..., :half]
    result: F64 = total[..., 0].copy()  # a view would keep the whole array alive
    return result


def _parameters(lo: F32, hi: F32, precision: Precision) -> tuple[F32, U8]:
    """Scale and zero point of ranges [lo, hi]."""
    scale: F32
    if precision.symmetric:
        scale = np.maximum(np.abs(hi), np.abs(lo))
        scale /= np.float32((1 << (precision.bits - 1)) - 1)
        return scale, np.zeros(scale.shape, np.uint8)
    n = np.float32((1 << precision.bits) - 1)
    lo, hi = -np.abs(np.minimum(lo, np.float32(0))), np.abs(np.maximum(hi, np.float32(0)))  # no 0 of the other sign
    with np.errstate(over="ignore"):
        scale = hi - lo
        scale /= n
        np.copyto(scale, np.minimum(hi / n - lo / n, _LARGEST), where=np.isinf(scale))
    zero_point = np.clip(np.rint(-lo / _divisor(scale)), np.float32(0), n)
    return scale, zero_point.astype(np.uint8)


def _divisor(scale: F32) -> F32:
    """The scale to divide by: infinity in place of 0, so that the quotient is 0."""
    return np.where(scale > 0, scale, np.float32(np.inf))


def _quantize(blocks: F32, scale: F32, zero_point: U8, precision: Precision) -> U8:
    """Stored codes of blocks [rows, groups, width]."""
    if precision.symmetric and precision.bits == 1:
        return (blocks >= 0).view(np.uint8)
    top = np.float32((1 << precision.bits) - 1)
    q = blocks / _divisor(scale)[..., None]
    np.rint(q, out=q)
    q += np.float32(1 << (precision.bits - 1)) if precision.symmetric else zero_point[..., None]
    np.clip(q, np.float32(1 if precision.symmetric else 0), top, out=q)
    return q.astype(np.uint8)


def _dequantize(blocks: U8, scale: F32, zero_point: U8 | None, precision: Precision) -> F32:
    """Values of stored codes [rows, groups, width]."""
    levels = blocks.astype(np.float32)
    if zero_point is not None:
        levels -= zero_point[..., None]
    elif precision.bits == 1:
        levels *= np.float32(2)
        levels -= np.float32(1)
    else:
        levels -= np.float32(1 << (precision.bits - 1))
    with np.errstate(over="ignore"):
        levels *= scale[..., None]
    if scale.max() > _LARGEST / np.float32(1 << precision.bits):
        np.clip(levels, -_LARGEST, _LARGEST, out=levels)
    return levels


def _per_element(values: Array, precision: Precision, cols: int) -> Array:
    """Repeat per-group values for each column; per-channel and per-tensor values are returned unchanged."""
    if precision.block is None:
        return values
    return values[:, np.arange(cols) // precision.block]


def _levels(parts: Mapping[str, Array], precision: Precision, cols: int) -> tuple[Array | int, Array | int]:
    """Return the lowest and the highest level of a code, in steps."""
    if precision.symmetric:
        n = (1 << (precision.bits - 1)) - 1
        return -n, n
    zero_point = _per_element(parts["zero_point"], precision, cols).astype(np.int64)
    return -zero_point, (1 << precision.bits) - 1 - zero_point


__all__ = ["bound", "decode", "encode", "traits"]
