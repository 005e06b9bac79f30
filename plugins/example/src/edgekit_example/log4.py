"""log4: signed powers of two in 4 bits, one exponent for 32 elements; 4.25 bits a weight.

    part        dtype    shape               meaning
    exponent    int8     [rows, cols / 32]   e: the largest level of the block is 2 ** e
    codes       uint8    [rows, cols / 2]    two codes a byte, the first one in the low nibble

    code = sign << 3 | m        value = 0 where m = 0, else (-1) ** sign * 2 ** (e - 7 + m)

Each element becomes the level nearest to it, of two equally near ones the larger. The block's largest magnitude
decides e in the same way, within -119 .. 127: then every level is a normal float32. Zero has no sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from edgekit.precision import Precision
from edgekit.reference import Parts, Traits
from edgekit.typing import F32, F64, I32, Array

BLOCK = 32
LOWEST, HIGHEST = -119, 127
NEVER = -999  # below every exponent of a float32: "log2(0)"


class Log4:
    """The reference of ``example:log4-g32``; see `edgekit.reference.Reference`."""

    precision = Precision(
        "example",
        "log4",
        bits=4,
        granularity="group",
        block=BLOCK,
        symmetric=True,
        scale_dtype="int8",
        bits_per_weight=Fraction(17, 4),
        name="example:log4-g32",
    )
    traits = Traits(
        proof="defined here; checked by the conformance kit",
        bound="a third of the magnitude, or 2^-7 of the block's largest level",
    )

    def encode(self, x: F32, precision: Precision, importance: F32 | None = None) -> Parts:
        """Encode rows [rows, cols], cols a multiple of 32; importance changes nothing."""
        blocks = x.reshape(len(x), -1, BLOCK)
        below, nearest = exponents(blocks)
        e = np.clip(nearest.max(axis=2, keepdims=True), LOWEST, HIGHEST)
        m = np.clip(nearest - e + 7, 0, 7)
        m = np.maximum(m, below >= e - 7)  # the upper half of the way from 0 to the smallest level
        codes = (m | ((blocks < 0) & (m > 0)) << 3).astype(np.uint8).reshape(x.shape)
        return {"exponent": e[..., 0].astype(np.int8), "codes": codes[:, ::2] | codes[:, 1::2] << 4}

    def decode(self, parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]; exact, every level being a power of two."""
        codes = np.stack([parts["codes"] & 15, parts["codes"] >> 4], axis=-1).reshape(shape[0], -1, BLOCK)
        m = (codes & 7).astype(np.int32)
        magnitude = np.ldexp(np.float32(1), parts["exponent"][..., None] - 7 + m)
        values = np.where(m > 0, np.where(codes > 7, -magnitude, magnitude), np.float32(0))
        return values.astype(np.float32).reshape(shape)

    def bound(self, x: F32, parts: Mapping[str, Array], precision: Precision) -> F64:
        """Half a gap: at most a third of the magnitude, near zero half the smallest level; above the top, the rest."""
        top: F64 = np.repeat(np.ldexp(1.0, parts["exponent"].astype(np.int32)), BLOCK, axis=1)
        magnitude = np.abs(x.astype(np.float64))
        return np.maximum(np.maximum(magnitude / 3, top / 128), magnitude - top)


def exponents(x: F32) -> tuple[I32, I32]:
    """Of each magnitude the power of two below it, and the one nearest to it (half way, at 1.5: the upper)."""
    fraction, exponent = np.frexp(np.abs(x))  # x = fraction * 2 ** exponent, fraction in [0.5, 1)
    below = np.where(x == 0, NEVER, exponent - 1).astype(np.int32)
    return below, below + (fraction >= 0.75)


__all__ = ["BLOCK", "HIGHEST", "LOWEST", "NEVER", "Log4", "exponents"]
