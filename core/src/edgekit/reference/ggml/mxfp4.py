"""MXFP4: 4-bit floats (e2m1), one power of two for 32 elements; 4.25 bits a weight.

    bytes    field    meaning
    0        e        float8_e8m0fnu scale: 2**(e - 127)
    1-16     qs       4-bit codes: element j low, element j + 16 high; values in `_e2m1`

    e = floor(log2(max|x|)) - 2 + 127        value = 2**(e - 127) * e2m1

The logarithm is rounded to float32, so that a maximum just below a power of two counts as that power, and e is cut
to 8 bits, so that it wraps around for maxima below 2**-125: such a block decodes to zeros. A block with an infinity
has e = 0. An importance matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_mxfp4_ref``; OCP Microscaling Formats v1.0 for the values. Proved bit for bit
against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _e2m1
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, lanes, pack_planes, peak, unpack_planes
from edgekit.typing import F32, F64, I32, U8

SIZE = 32
IMPORTANCE = "unused"
LAYOUT = np.dtype([("e", "u1"), ("qs", "u1", 16)])
_BIAS = 127
_OVERFLOWS = 252  # above this, the largest values times the scale are infinite


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 32]; importance is ignored."""
    largest = peak(np.abs(lanes(x)))
    exponent = _exponent(largest)
    e = exponent.astype(np.uint8)
    tame = (exponent >= 0) & (exponent <= _OVERFLOWS) & np.isfinite(largest)
    blocks = np.empty(len(x), LAYOUT)
    blocks["e"] = e
    blocks["qs"] = pack_planes(_e2m1.nearest_codes(x, _half_scale(e), tame), 1, 2, 4)
    return blocks


def _exponent(largest: F32) -> I32:
    """Return the biased exponent [blocks] before it is truncated to 8 bits; 0 for zero and infinity."""
    logarithm = np.floor(np.log2(largest.astype(np.float64)).astype(np.float32))
    return np.where(np.isfinite(logarithm), logarithm - np.float32(2 - _BIAS), np.float32(0)).astype(np.int32)


def _half_scale(e: U8) -> F32:
    """Return half the scale, 2**(e - 128), exact."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - (_BIAS + 1))


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 32]."""
    return _e2m1.VALUES[unpack_planes(blocks["qs"], 1, 2, 4)] * _half_scale(blocks["e"])[:, None]


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the bound of `_e2m1.nearest_bound`."""
    return _e2m1.nearest_bound(x, _half_scale(blocks["e"]).astype(np.float64))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode"]
