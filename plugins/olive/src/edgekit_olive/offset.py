"""Blocks with a real offset for MatMulNBits, which hold the values of llama.cpp's K-quants to the bit.

    part           dtype       shape                             holds
    B              uint8       [rows, blocks, block * w / 8]     codes of b bits in w bits, LSB first
    scales         float32     [rows, blocks]                    s
    offsets        float32     [rows, blocks]                    o, the value of code 0

    b    w     the values of                    block
    2    4     ggml:Q2_K                        16
    4    4     ggml:Q4_1, Q4_K                  32
    5    8     ggml:Q5_1, Q5_K                  32

    encode         s = (max - min) / (2^b - 1)    o = min
                   q = clip(rint((x - o) / s), 0, 2^b - 1)    0 where s = 0
    decode         s * q + o, the product rounded first

MatMulNBits has no offsets. Its zero points in floats would be -o / s, rounded, and the CPU provider decodes the whole
matrix for them at every product, many times as slow. So a product has two terms, each near zero on average: MatMulNBits
of the codes around their middle c = 2^(b-1), and that of the sums of each block's columns with the offsets there.

    y[r] = sum over i of s * (q - c) * x[i]    +    sum over blocks of (o + s * c) * (sum of the block's x)

The runtime computes o + s * c once, when it loads the graph. 2 bits in blocks of 16 are slow in MatMulNBits of 2 bits,
and 5 bits have no operator: hence w. A row needs whole blocks.

The values are exactly those of `mlx:int4-g32` and its like with float32 scales, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import attrs
import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import extremes, groups, row_chunks
from edgekit.precision import Precision
from edgekit.reference import Parts, Traits
from edgekit.typing import F32, F64, U8, Array
from edgekit_olive.kquant import record

#: Bits of a code -> bits in which MatMulNBits stores it.
SLOTS: Mapping[int, int] = {2: 4, 4: 4, 5: 8}
BLOCKS = (16, 32, 64, 128, 256)
KINDS = tuple(f"offset{bits}" for bits in SLOTS)


@attrs.frozen
class Offset:
    """The reference of ``onnx:offset<bits>-g<block>``; see `edgekit.reference.Reference`.

    Attributes:
        bits: 2, 4 or 5.
        block: number of columns that share a scale and an offset.

    Example:
        >>> Offset(4, 32).precision.name
        'onnx:offset4-g32'
    """

    bits: int
    block: int

    traits = Traits(proof="no tool makes it; decoding: onnxruntime 1.32.0", bound="half a step")

    @property
    def precision(self) -> Precision:
        """Its record."""
        width = SLOTS[self.bits] + Fraction(64, self.block)
        return attrs.evolve(
            record(f"offset{self.bits}", self.bits, self.block, width), scale_dtype="float32", whole_blocks=True
        )

    def encode(self, x: Array, precision: Precision, importance: F32 | None = None) -> Parts:
        """Encode float32 rows [rows, cols], a whole number of blocks; importance is ignored."""
        rows, blocks = len(x), x.shape[1] // self.block
        codes = np.empty(x.shape, np.uint8)
        scales, offsets = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.float32)
        top = np.float32((1 << self.bits) - 1)
        with np.errstate(all="ignore"):
            for part in row_chunks(*x.shape):
                wide = groups(x[part], self.block)
                low, high = extremes(wide)
                scale = (high - low) / top
                levels = np.clip(np.rint((wide - low[..., None]) / scale[..., None]), 0, top)
                codes[part] = np.where(scale[..., None] > 0, levels, 0).astype(np.uint8).reshape(codes[part].shape)
                scales[part], offsets[part] = scale, low
        return stored(codes, scales, offsets, self.bits)

    def decode(self, parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]."""
        rows, cols = shape
        values = unpack_lsb(parts["B"].reshape(rows, -1), SLOTS[self.bits], cols).astype(np.float32)
        blocks = groups(values, self.block)
        with np.errstate(all="ignore"):
            blocks *= parts["scales"][..., None]
            blocks += parts["offsets"][..., None]
        return values

    def bound(self, x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
        """Return half a step, and what float32 rounds of the scale, the product and the sum."""
        scale, low = (np.repeat(parts[key].astype(np.float64), self.block, axis=1) for key in ("scales", "offsets"))
        sizes = np.abs(x) + np.abs(low) + ((1 << self.bits) - 1) * scale
        return scale / 2 + 2.0**-21 * sizes + 2.0**-140  # the last for steps among float32's subnormal numbers


def stored(codes: U8, scales: F32, offsets: F32, bits: int) -> Parts:
    """Return the parts for codes [rows, cols] of `bits` bits, scales and offsets [rows, blocks]."""
    packed = pack_lsb(codes, SLOTS[bits]).reshape(*scales.shape, -1)
    return {"B": packed, "scales": np.ascontiguousarray(scales), "offsets": np.ascontiguousarray(offsets)}


def __getattr__(name: str) -> Offset:
    """Return the reference of a precision by its kind and block, such as ``offset4_g32``."""
    for bits in SLOTS:
        for block in BLOCKS:
            if name == f"offset{bits}_g{block}":
                return Offset(bits, block)
    raise AttributeError(name)


__all__ = ["BLOCKS", "KINDS", "SLOTS", "Offset", "stored"]
