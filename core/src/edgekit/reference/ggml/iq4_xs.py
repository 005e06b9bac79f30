"""IQ4_XS: 4-bit codes for sixteen uneven values in 8 sub-blocks of 32 with 6-bit scales; 4.25 bits a weight.

    bytes    field       meaning
    0-1      d           float16 scale of the scales
    2-3      scales_h    bits 4-5 of the scales, sub-block 0 lowest
    4-7      scales_l    bits 0-3: sub-block 2j low, 2j + 1 high
    8-135    qs          4-bit codes: of each sub-block element j low, element j + 16 high

    value = d * (scale - 32) * VALUES[q]        q = nearest(x / (d * (scale - 32))); values in `_nonlinear`

The scale of each sub-block comes from the search in `_nonlinear`, weighted by x², or with an importance matrix by
``qw * sqrt(2 * mean(x²) + x²)`` over the super-block; the one of largest magnitude becomes -32. Scales and codes are
chosen before d is rounded to float16.
Source: ggml 0.25.3, ``quantize_iq4_xs``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml import _nonlinear
from edgekit.reference.ggml._bounds import half_ulp
from edgekit.reference.ggml._codes import reciprocal
from edgekit.reference.ggml._importance import Importance, block_power, search_weights
from edgekit.reference.ggml._layout import Blocks, columns, pack_planes, to_lanes, unpack_planes
from edgekit.reference.ggml._search import first_peak
from edgekit.typing import F32, F64, I8, U8

SIZE = 256
SUB = 32
_SUBS = SIZE // SUB
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("scales_h", "u1", 2), ("scales_l", "u1", 4), ("qs", "u1", 128)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    turned = columns(x.reshape(-1, SUB))
    weights = np.square(turned)
    if importance is not None:
        power = block_power(x) * np.float32(2 / SIZE)
        weights = columns(search_weights(x, importance.columns, power[:, None]).reshape(-1, SUB))
    values = _nonlinear.search(turned, weights).reshape(-1, _SUBS)
    d = -first_peak(values) / np.float32(32)
    scales = np.clip(nearest_int(reciprocal(d)[:, None] * values), -32, 31)
    step = d[:, None] * scales.astype(np.float32)
    codes = columns(_nonlinear.codes(turned, reciprocal(step.ravel()))).reshape(x.shape)
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = d
    stored: U8 = (scales + 32).astype(np.uint8)
    blocks["scales_h"], blocks["scales_l"] = pack_lsb(stored >> np.uint8(4), 2), pack_lsb(stored & np.uint8(15), 4)
    blocks["qs"] = pack_planes(to_lanes(codes), 8, 2, 4)
    return blocks


def unpack_scales(blocks: Blocks) -> I8:
    """Return the scale of each sub-block, -32 to 31: int8 [blocks, 8]."""
    high, low = unpack_lsb(blocks["scales_h"], 2, _SUBS), unpack_lsb(blocks["scales_l"], 4, _SUBS)
    codes = low | high << np.uint8(4)
    return codes.view(np.int8) - np.int8(32)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    codes = unpack_planes(blocks["qs"], 8, 2, 4).reshape(-1, SUB)
    step: F32 = blocks["d"].astype(np.float32)[:, None] * unpack_scales(blocks)
    return (_nonlinear.VALUES[codes] * step.reshape(-1, 1)).reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return half the gap around x, plus half a unit in the last place of d, times the scale, for each step."""
    scales = unpack_scales(blocks)
    step = blocks["d"].astype(np.float64)[:, None] * scales
    drift = half_ulp(blocks["d"])[:, None] * np.abs(scales.astype(np.float64))
    return _nonlinear.nearest_bound(x.reshape(-1, SUB), step.ravel(), drift.ravel()).reshape(x.shape)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "SUB", "bound", "decode", "encode", "unpack_scales"]
