"""K-quant for MatMulNBits: blocks of 4 or 8 bits with zero points, their scales searched as llama.cpp does.

    part           dtype               shape                             holds
    B              uint8               [rows, blocks, block * b / 8]     codes, LSB first
    scales         the source's        [rows, blocks]                    s
    zero_points    uint8               [rows, ceil(blocks * b / 8)]      z, LSB first

    weights        w = sqrt(mean(x^2)) + |x|                 of a block's elements, missing ones being 0
    candidates     n = 2^b - 1 + d for d = -1, -0.9 … 0.9    codes of rint((x - min) * n / (max - min))
    each one       the s and the offset that minimize the sum of w * (s * code + offset - x)^2
    best           of the candidates, and of n = 2^b - 1 with the block's own ends: the least weighted error
    zero point     z = clip(rint(-offset / s), 0, 2^b - 1)
    encode         q = clip(rint(x / s + z), 0, 2^b - 1)     in float64
    decode         (q - z) * s

The parts are those of ``onnx:int4-asym-g<block>``, as which a graph is read back. The bytes equal the tool's, except
for blocks without both signs, for which its zero point loses the offset, and blocks without a usable scale: those are
encoded as ``onnx:int4-asym-g<block>``. The tool's own packing of zero points needs an even number of blocks in a row.

Source: onnxruntime 1.32.0, `onnxruntime.quantization.neural_compressor.weight_only.quant_tensor_k_quant_cpu`
(`KQuantWeightOnlyQuantConfig`); ggml's ``make_qkx2_quants``.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import attrs
import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import row_chunks
from edgekit.numerics.smallfloats import as_float32, float32_to_bfloat16, is_bfloat16
from edgekit.precision import Precision, find_precision
from edgekit.reference import Parts, Traits, reference
from edgekit.typing import F32, F64, U8, Array

BITS, BLOCKS = (4, 8), (16, 32, 64, 128, 256)
#: The candidates' differences from the largest code.
_STEPS = [-1 + 0.1 * step for step in range(20)]
#: Blocks whose range is smaller have no usable scale.
_LEAST = np.float32(2.0**-120)


@attrs.frozen
class KQuant:
    """The reference of ``onnx:kquant<bits>-g<block>``; see `edgekit.reference.Reference`.

    Attributes:
        bits: 4 or 8.
        block: number of columns that share a scale.

    Example:
        >>> KQuant(4, 32).precision.name
        'onnx:kquant4-g32'
    """

    bits: int
    block: int

    traits = Traits(
        proof="exact in blocks with both signs: onnxruntime 1.32.0",
        bound="half a step; beyond the last level the distance to it",
        source_dtypes=True,
    )

    @property
    def precision(self) -> Precision:
        """Its record."""
        bits = self.bits + Fraction(16 + self.bits, self.block)
        return record(f"kquant{self.bits}", self.bits, self.block, bits)

    @property
    def stored(self) -> Precision:
        """The precision as which its parts are read."""
        return find_precision(f"onnx:int{self.bits}-asym-g{self.block}")

    def encode(self, x: Array, precision: Precision, importance: F32 | None = None) -> Parts:
        """Encode rows [rows, cols] of float32, float16 or bfloat16; importance is ignored."""
        parts = reference(self.stored).encode(x, self.stored)
        scales, packed = parts["scales"].copy(), parts["B"].copy()
        zeros = unpack_lsb(parts["zero_points"], self.bits, scales.shape[1]).copy()
        with np.errstate(all="ignore"):
            for rows in row_chunks(*x.shape):
                blocks = padded(as_float32(x[rows]), self.block)
                scale, zero, codes = searched(blocks.reshape(-1, self.block), self.bits)
                shape = blocks.shape[:2]
                used = _usable(blocks, scale.reshape(shape))
                stored = float32_to_bfloat16(scale).view(x.dtype) if is_bfloat16(x.dtype) else scale.astype(x.dtype)
                scales[rows] = np.where(used, stored.reshape(shape), scales[rows])
                zeros[rows] = np.where(used, zero.reshape(shape), zeros[rows])
                bytes_of = pack_lsb(codes.reshape(len(blocks), -1), self.bits).reshape(packed[rows].shape)
                packed[rows] = np.where(used[..., None], bytes_of, packed[rows])
        missing = -zeros.shape[1] % (8 // self.bits)
        zeros = np.pad(zeros, ((0, 0), (0, missing)), constant_values=1 << (self.bits - 1))
        return {"B": packed, "scales": scales, "zero_points": pack_lsb(zeros, self.bits)}

    def decode(self, parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]."""
        return reference(self.stored).decode(parts, self.stored, shape)

    def bound(self, x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
        """Return half a step; beyond the last level, the distance to it; and what rounding the scale adds."""
        limit = reference(self.stored).bound(x, parts, self.stored)
        # Codes are chosen with the scale before it is rounded to 2 bytes.
        coarse = {2: 2.0**-7 if is_bfloat16(x.dtype) else 2.0**-10}.get(x.dtype.itemsize, 0.0)
        scale = as_float32(np.repeat(parts["scales"], self.block, axis=1)[:, : x.shape[1]]).astype(np.float64)
        return limit + (coarse * (1 << self.bits) + 2.0**-12) * np.abs(scale)


def record(kind: str, bits: int, block: int, bits_per_weight: Fraction, *, whole_tensor: bool = False) -> Precision:
    """Return the record of a blockwise precision of ONNX Runtime's with zero points."""
    return Precision(
        "onnx",
        kind,
        bits=bits,
        granularity="group",
        block=block,
        symmetric=False,
        scale_dtype="source",
        bits_per_weight=bits_per_weight,
        whole_blocks=False,
        whole_tensor=whole_tensor,
        name=f"onnx:{kind}-g{block}",
    )


def padded(x: F32, block: int) -> F32:
    """Return rows [rows, cols] as blocks [rows, blocks, block], filled up with zeros."""
    missing = -x.shape[1] % block
    whole = np.pad(x, ((0, 0), (0, missing))) if missing else x
    return np.ascontiguousarray(whole).reshape(len(x), -1, block)


def searched(x: F32, bits: int) -> tuple[F32, U8, U8]:
    """Return scales [n, 1], zero points [n, 1] and codes [n, block] of blocks [n, block].

    Sums are numpy's over the last axis, in float32, as in the tool: another order changes codes.
    """
    top = np.float32((1 << bits) - 1)
    weights = np.sqrt(_sum(x**2) / np.float32(x.shape[1])) + np.abs(x)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    offset = low.copy()
    scale = 1 / _inverse(top, low, high)
    levels = np.clip(np.round(_inverse(top, low, high) * (x - low)), 0, top)
    least = _sum(weights * (scale * levels + low - x) ** 2)
    total, total_x = _sum(weights), _sum(weights * x)
    for step in _STEPS:
        # The tool moves a block's minimum with the best candidate so far, and searches on from there.
        inverse = _inverse(np.float32(step + float(top)), offset, high)
        levels = np.clip(np.round(inverse * (x - offset)), 0, top)
        weighted = weights * levels
        total_l, total_l2, total_xl = _sum(weighted), _sum(weighted * levels), _sum(weighted * x)
        divisor = total * total_l2 - total_l**2
        new_scale = (total * total_xl - total_x * total_l) / divisor
        new_offset = (total_l2 * total_x - total_l * total_xl) / divisor
        error = _sum(weights * (new_scale * levels + new_offset - x) ** 2)
        better = error < least
        least, scale = np.where(better, error, least), np.where(better, new_scale, scale)
        offset = np.where(better, new_offset, offset)
    zero = np.clip(np.round(-offset / scale), 0, top)
    zero_point = np.where(np.isfinite(zero), zero, 0).astype(np.uint8)
    codes = np.clip(np.round(x / scale.astype(np.float64) + zero_point), 0, top)
    return np.asarray(scale, np.float32), zero_point, np.where(np.isfinite(codes), codes, 0).astype(np.uint8)


def _inverse(levels: np.float32, low: F32, high: F32) -> F32:
    """Return 1 / scale of blocks with so many levels above the lowest; 1 where they have one value."""
    inverse = np.ones_like(low)
    np.divide(levels, high - low, out=inverse, where=low != high)
    return inverse


def _sum(values: F32) -> F32:
    total: F32 = np.sum(values, axis=1, keepdims=True)
    return total


def _usable(blocks: F32, scale: F32) -> Array:
    """Return which blocks have both signs and a scale that can be divided by, [rows, blocks]."""
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    usable: Array = (low < 0) & (high > 0) & (high - low > _LEAST) & np.isfinite(scale) & (scale > _LEAST)
    return usable


def __getattr__(name: str) -> KQuant:
    """Return the reference of a precision by its kind and block, such as ``kquant4_g32``."""
    for bits in BITS:
        for block in BLOCKS:
            if name == f"kquant{bits}_g{block}":
                return KQuant(bits, block)
    raise AttributeError(name)


__all__ = ["BITS", "BLOCKS", "KQuant", "padded", "record", "searched"]
