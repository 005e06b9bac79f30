"""Q6_K: 6-bit codes in 16 sub-blocks of 16 with 8-bit scales; 6.5625 bits a weight.

    bytes    field    meaning
    0-127    ql       bits 0-3 of the codes: of each 128, element j low, element j + 64 high
    128-191  qh       bits 4-5: of each 128, elements j, j + 32, j + 64, j + 96 from the lowest bits up
    192-207  scales   int8, one for each sub-block
    208-209  d        float16 scale of the scales

    value = d * scale * (q - 32)        q = clip(nearest_int(x / (d * scale)), -32, 31) + 32

The scale of each sub-block comes from the `symmetric` search, weighted by x², or by an importance matrix alone;
the one of largest magnitude becomes -128. A super-block whose scales are all below 1e-15 is zero bytes.
Source: ggml 0.25.3, ``quantize_row_q6_K_ref`` and ``_impl``. Proved bit for bit against libggml-base of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._bounds import grid_bound
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, columns, pack_planes, unpack_planes
from edgekit.reference.ggml._search import EPSILON, first_peak, symmetric, symmetric_codes
from edgekit.reference.ggml._superblocks import super_codes
from edgekit.typing import F32, F64

SIZE = 256
SUB = 16
TOP = 32
IMPORTANCE = "block"
LAYOUT = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
_SCALE_TOP = 128


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    turned = columns(x.reshape(-1, SUB))
    weights = np.square(turned) if importance is None else columns(importance.columns.reshape(-1, SUB))
    fit = symmetric(turned, weights, TOP)
    values = fit.scale.reshape(-1, SIZE // SUB)
    peak = first_peak(values)
    inverse = np.float32(-_SCALE_TOP) / peak
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = np.float32(1) / inverse
    blocks["scales"] = np.minimum(nearest_int(inverse[:, None] * values), _SCALE_TOP - 1).astype(np.int8)
    stored = super_codes(x, _step(blocks), None, -TOP, TOP - 1, lambda at: symmetric_codes(turned, fit, TOP, at))
    blocks["ql"] = pack_planes(stored, 2, 2, 4)
    blocks["qh"] = pack_planes(stored, 2, 4, 2, first=4)
    blocks[np.abs(peak) < EPSILON] = 0
    return blocks


def _step(blocks: Blocks) -> F32:
    """The stored scale of each sub-block, multiplied out: float32 [blocks, 16], exact."""
    d: F32 = blocks["d"].astype(np.float32)
    step: F32 = d[:, None] * blocks["scales"]
    return step


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    codes = unpack_planes(blocks["ql"], 2, 2, 4) | unpack_planes(blocks["qh"], 2, 4, 2, first=4)
    value: F32 = (codes.view(np.int8) - np.int8(TOP)).reshape(-1, SUB) * _step(blocks).reshape(-1, 1)
    return value.reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, since codes are chosen under the stored scales; outside of the range, the distance to it."""
    step = _step(blocks).astype(np.float64)
    return grid_bound(x.reshape(-1, SUB), step, 0.0, -TOP, TOP - 1, wraps=True).reshape(x.shape)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "SUB", "TOP", "bound", "decode", "encode"]
