"""HQQ for MatMulNBits: blocks of 2 or 4 bits with zero points in floats, fitted without data.

    part           dtype                   shape                             holds
    B              uint8                   [rows, blocks, block * b / 8]     codes, LSB first
    scales         float32, or float16     [rows, blocks]                    s
    zero_points    as scales               [rows, blocks]                    z, any real number

    scale          r = min(1 / (max - min) * (2^b - 1), 20000)    s = 1 / r      r = 1 where max = min
    start          z = rint(-min * r)
    20 times       q = clip(rint(x * r + z), 0, 2^b - 1)                 e = x - (q - z) / r
                   z = mean over the block of q - (x - f) * r            f = sign(e) * max(|e| - |e|^-0.3 / beta, 0)
                   beta is 10, and 1.01 times as large each time
    end            when the mean of |e| over the whole tensor is not smaller than the least so far
    encode         q = clip(rint(x * r + z), 0, 2^b - 1)                 decode  (q - z) * s

Missing elements of a row are zeros that count in a block. All in float32; float16 rows have parts in float16, as in the
tool, and bfloat16 rows in float32: the tool does not take them, and a zero point in bfloat16 is too coarse.
As the whole tensor decides when the search ends, rows depend on each other. MatMulNBits of the CPU provider takes such
zero points with 2 and 4 bits, and GatherBlockQuantized takes none, so that an embedding is stored otherwise.

Scales equal the tool's. It computes with torch, whose powers and means differ in the last bits: zero points agree to
1e-5 of a level, or where that moves a value over the middle between two levels, to 0.02; codes but for such values.

Source: onnxruntime 1.32.0, `HQQWeightOnlyQuantizer.quantize_internal`; Badri and Shaji, "Half-Quadratic Quantization of
Large Machine Learning Models", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import attrs
import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import row_chunks
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.reference import Parts, Traits
from edgekit.typing import F32, F64, Array
from edgekit_olive.kquant import padded, record

BITS, BLOCKS = (2, 4), (16, 32, 64, 128, 256)
KINDS = tuple(f"hqq{bits}" for bits in BITS)
_ROUNDS, _GROWTH, _BETA, _POWER = 20, 1.01, 10.0, np.float32(0.7 - 1)
_LARGEST = np.float32(2e4)


@attrs.frozen
class Hqq:
    """The reference of ``onnx:hqq<bits>-g<block>``; see `edgekit.reference.Reference`.

    Attributes:
        bits: 2 or 4.
        block: number of columns that share a scale.

    Example:
        >>> Hqq(4, 64).precision.name
        'onnx:hqq4-g64'
    """

    bits: int
    block: int

    traits = Traits(
        proof="scales equal, zero points within 1e-5 of a level, some 0.02: onnxruntime 1.32.0",
        bound="half a step; beyond the last level the distance to it",
        source_dtypes=True,
    )

    @property
    def precision(self) -> Precision:
        """Its record."""
        bits = self.bits + Fraction(32, self.block)
        return record(f"hqq{self.bits}", self.bits, self.block, bits, whole_tensor=True)

    def encode(self, x: Array, precision: Precision, importance: F32 | None = None) -> Parts:
        """Encode rows [rows, cols] of float32, float16 or bfloat16, which are a whole tensor; importance is ignored."""
        rows, blocks = len(x), -(-x.shape[1] // self.block)
        dtype = x.dtype if x.dtype == np.float16 else np.dtype(np.float32)
        packed = np.empty((rows, blocks * self.block * self.bits // 8), np.uint8)
        with np.errstate(all="ignore"):
            inverse, zero = self._fitted(x, (rows, blocks))
            for part in row_chunks(*x.shape):
                wide = padded(as_float32(x[part]), self.block)
                codes = self._codes(wide, inverse[part], zero[part])
                whole = np.where(np.isfinite(codes), codes, 0).astype(np.uint8)
                packed[part] = pack_lsb(whole.reshape(len(wide), -1), self.bits)
            scales, zero_points = (1 / inverse).astype(dtype), zero.astype(dtype)
        return {"B": packed.reshape(rows, blocks, -1), "scales": scales, "zero_points": zero_points}

    def decode(self, parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]."""
        rows, cols = shape
        packed = parts["B"].reshape(rows, -1)
        levels = unpack_lsb(packed, self.bits, packed.shape[1] * 8 // self.bits).astype(np.float32)
        values = levels.reshape(rows, -1, self.block) - as_float32(parts["zero_points"])[..., None]
        values *= as_float32(parts["scales"])[..., None]
        return np.ascontiguousarray(values.reshape(rows, -1)[:, :cols])

    def bound(self, x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
        """Return half a step; beyond the last level the distance to it; and the rounding of codes and of the parts."""
        wide = as_float32(x).astype(np.float64)
        scale, zero = (
            np.repeat(as_float32(parts[key]).astype(np.float64), self.block, axis=1)[:, : x.shape[1]]
            for key in ("scales", "zero_points")
        )
        top = float((1 << self.bits) - 1)
        beyond = np.maximum(wide - (top - zero) * scale, -zero * scale - wide)
        # Parts in float16 are rounded after the codes are chosen; scales below its normal numbers lose a bit.
        rounding = (2.0**-9 if x.dtype == np.float16 else 2.0**-20) * (np.abs(zero) + top) * scale
        return np.maximum(beyond, scale / 2) + rounding + np.abs(wide) * 2.0**-20

    def _fitted(self, x: Array, shape: tuple[int, int]) -> tuple[F32, F32]:
        """Return 1 / scale and the zero point of each block, [rows, blocks]."""
        inverse, zero = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for part in row_chunks(*x.shape):
            blocks = padded(as_float32(x[part]), self.block)
            low, high = blocks.min(axis=2), blocks.max(axis=2)
            top = np.float32((1 << self.bits) - 1)
            spread = np.where(high == low, top, high - low)
            inverse[part] = np.minimum(1 / spread * top, _LARGEST)  # torch's order: a reciprocal, then a product
            zero[part] = np.round(-low * inverse[part])
        beta, least = _BETA, 1e4
        for _ in range(_ROUNDS):
            error = self._improve(x, inverse, zero, np.float32(1 / beta))
            beta *= _GROWTH
            if not error < least:
                break
            least = error
        return inverse, zero

    def _improve(self, x: Array, inverse: F32, zero: F32, threshold: np.float32) -> float:
        """Move the zero points of a whole tensor once; return the mean error before."""
        total, count = 0.0, 0
        for part in row_chunks(*x.shape):
            blocks = padded(as_float32(x[part]), self.block)
            codes = self._codes(blocks, inverse[part], zero[part])
            error = blocks - (codes - zero[part][..., None]) / inverse[part][..., None]
            size = np.abs(error)
            total, count = total + float(size.sum(dtype=np.float64)), count + size.size
            shrunk = np.sign(error) * np.maximum(size - threshold * (size + np.float32(1e-8)) ** _POWER, 0)
            zero[part] = np.mean(codes - (blocks - shrunk) * inverse[part][..., None], axis=2)
        return float(np.float32(total / count))

    def _codes(self, blocks: F32, inverse: F32, zero: F32) -> F32:
        levels = np.round(blocks * inverse[..., None] + zero[..., None])
        codes: F32 = np.clip(levels, 0, np.float32((1 << self.bits) - 1))
        return codes


def __getattr__(name: str) -> Hqq:
    """Return the reference of a precision by its kind and block, such as ``hqq4_g64``."""
    for bits in BITS:
        for block in BLOCKS:
            if name == f"hqq{bits}_g{block}":
                return Hqq(bits, block)
    raise AttributeError(name)


__all__ = ["BITS", "BLOCKS", "KINDS", "Hqq"]
