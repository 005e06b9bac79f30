"""Q2_0: codes -1, 0, 1 in 2 bits, one float16 scale for 64 elements; 2.25 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-17     qs       2-bit codes, element 0 lowest

    d = max|x|        q = clip(roundf(x * (1 / d)) + 1, 0, 3)        value = (q - 1) * d

The format could hold 2 * d, but no element is larger than d. The codes are chosen before d is rounded to float16.
An importance matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_q2_0_ref``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.reference.ggml._bounds import grid_bound, half_ulp
from edgekit.reference.ggml._codes import ternary
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, from_lanes
from edgekit.typing import F32, F64

SIZE = 64
IMPORTANCE = "unused"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 64]; importance is ignored."""
    d, codes = ternary(x, undefined=-1)
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = d
    blocks["qs"] = pack_lsb(from_lanes(codes), 2)
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 64]."""
    codes = unpack_lsb(blocks["qs"], 2, SIZE).view(np.int8)
    d: F32 = blocks["d"].astype(np.float32)
    return (codes - np.int8(1)) * d[:, None]


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, and half a unit in the last place of the stored scale."""
    return grid_bound(x, blocks["d"].astype(np.float64), 0.0, -1, 1, drift=half_ulp(blocks["d"]))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode"]
