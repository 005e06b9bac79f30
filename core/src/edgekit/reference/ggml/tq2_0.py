"""TQ2_0: ternary codes in 2 bits, one float16 scale for 256 elements; 2.0625 bits a weight.

    bytes    field    meaning
    0-63     qs       of each 128, elements j, j + 32, j + 64, j + 96 from the lowest bits up
    64-65    d        float16 scale

    d = max|x|        q = roundf(x * (1 / d)) + 1        value = (q - 1) * d

Made for weights that are ternary already. The codes are chosen before d is rounded to float16. An importance
matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_tq2_0_ref``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._bounds import grid_bound, half_ulp
from edgekit.reference.ggml._codes import ternary
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, pack_planes, unpack_planes
from edgekit.typing import F32, F64

SIZE = 256
IMPORTANCE = "unused"
LAYOUT = np.dtype([("qs", "u1", 64), ("d", "<f2")])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]; importance is ignored."""
    d, codes = ternary(x)
    blocks = np.empty(len(x), LAYOUT)
    blocks["qs"] = pack_planes(codes, 2, 4, 2)
    blocks["d"] = d
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    codes = unpack_planes(blocks["qs"], 2, 4, 2).view(np.int8)
    d: F32 = blocks["d"].astype(np.float32)
    return (codes - np.int8(1)) * d[:, None]


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, and half a unit in the last place of the stored scale."""
    return grid_bound(x, blocks["d"].astype(np.float64), 0.0, -1, 1, drift=half_ulp(blocks["d"]))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode"]
