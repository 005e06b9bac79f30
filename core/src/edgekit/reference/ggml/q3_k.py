"""Q3_K: 3-bit codes in 16 sub-blocks of 16 with 6-bit scales; 3.4375 bits a weight.

    bytes    field    meaning
    0-31     hmask    bit 2 of the codes: bit b of byte j belongs to element 32 * b + j
    32-95    qs       bits 0-1: of each 128, elements j, j + 32, j + 64, j + 96 from the lowest bits up
    96-107   scales   16 scales + 32 of 6 bits: bits 0-3 of scale j in the low (j < 8) or high half of byte j % 8,
                      bits 4-5 in byte 8 + j % 4 at bit 2 * (j // 4)
    108-109  d        float16 scale of the scales

    value = d * (scale - 32) * (q - 4)        q = clip(nearest_int(x / (d * (scale - 32))), -4, 3) + 4

The scale of each sub-block comes from `descent` on the codes, weighted by x²; the one of largest magnitude
becomes -32. With an importance matrix it is the `symmetric` search, weighted by ``qw * sqrt(2 * mean(x²) + x²)``
over the super-block, and the scales themselves are searched likewise.
Source: ggml 0.25.3, ``quantize_row_q3_K_ref`` and ``_impl``. Proved bit for bit against libggml-base of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._bounds import grid_bound
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, columns, pack_planes, to_lanes, unpack_planes
from edgekit.reference.ggml._search import Index, descent, first_peak, symmetric, symmetric_codes, total
from edgekit.reference.ggml._superblocks import Scales, importance_columns, super_codes
from edgekit.typing import F32, F64, I8, U8

SIZE = 256
SUB = 16
TOP = 4
IMPORTANCE = "block"
LAYOUT = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_SCALE_TOP = 32
Searched = Callable[[Index], F32]


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    scales, searched = _plain(x) if importance is None else _weighted(x, importance)
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"], blocks["scales"] = scales.d, pack_scales(scales.codes)
    codes = super_codes(x, _step(blocks), None, -TOP, TOP - 1, searched)
    blocks["hmask"] = pack_planes(codes, 1, 8, 1, first=2)
    blocks["qs"] = pack_planes(codes, 2, 4, 2)
    return blocks


def _plain(x: F32) -> tuple[Scales, Searched]:
    """Scales, and what gives the codes of the search."""
    fit = descent(columns(x.reshape(-1, SUB)), TOP)
    values = fit.scale.reshape(-1, SIZE // SUB)
    peak = first_peak(values)
    inverse = np.float32(-_SCALE_TOP) / peak
    codes = np.clip(nearest_int(inverse[:, None] * values).astype(np.int8), -_SCALE_TOP, _SCALE_TOP - 1)
    codes[peak == 0] = -_SCALE_TOP
    d = np.where(peak != 0, np.float32(1) / inverse, np.float32(0))
    return Scales(d, (codes + np.int8(_SCALE_TOP)).view(np.uint8)), lambda at: fit.codes[:, at]


def _weighted(x: F32, importance: Importance) -> tuple[Scales, Searched]:
    turned = columns(x.reshape(-1, SUB))
    weights = importance_columns(x, importance, SUB, 2)
    fit = symmetric(turned, weights, TOP)
    values, sums = (columns(v.reshape(-1, SIZE // SUB)) for v in (fit.scale, total(weights)))
    outer = symmetric(values, sums, _SCALE_TOP)
    codes = symmetric_codes(values, outer, _SCALE_TOP) + np.float32(_SCALE_TOP)
    scales = Scales(outer.scale, columns(codes.astype(np.uint8)))
    return scales, lambda at: symmetric_codes(turned, fit, TOP, at)


def pack_scales(codes: U8) -> U8:
    """Scales + 32 [blocks, 16] as bytes [blocks, 12]."""
    turned = to_lanes(codes)
    return np.concatenate([pack_planes(turned, 1, 2, 4), pack_planes(turned, 1, 4, 2, first=4)], axis=1)


def unpack_scales(packed: U8) -> I8:
    """The inverse of `pack_scales`, less 32: bytes [blocks, 12] to int8 [blocks, 16]."""
    low = packed[:, None, :8] >> np.array([[0], [4]], np.uint8) & np.uint8(15)
    high = packed[:, None, 8:] >> np.array([[0], [2], [4], [6]], np.uint8) & np.uint8(3)
    codes = low.reshape(-1, 16) | high.reshape(-1, 16) << np.uint8(4)
    return codes.view(np.int8) - np.int8(_SCALE_TOP)


def _step(blocks: Blocks) -> F32:
    """The stored scale of each sub-block, multiplied out: float32 [blocks, 16], exact."""
    d: F32 = blocks["d"].astype(np.float32)
    return d[:, None] * unpack_scales(blocks["scales"])


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    codes = unpack_planes(blocks["qs"], 2, 4, 2) | unpack_planes(blocks["hmask"], 1, 8, 1, first=2)
    value: F32 = (codes.view(np.int8) - np.int8(TOP)).reshape(-1, SUB) * _step(blocks).reshape(-1, 1)
    return value.reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, since codes are chosen under the stored scales; outside of the range, the distance to it."""
    step = _step(blocks).astype(np.float64)
    return grid_bound(x.reshape(-1, SUB), step, 0.0, -TOP, TOP - 1, wraps=True).reshape(x.shape)


__all__ = [
    "IMPORTANCE",
    "LAYOUT",
    "SIZE",
    "SUB",
    "TOP",
    "Searched",
    "bound",
    "decode",
    "encode",
    "pack_scales",
    "unpack_scales",
]
