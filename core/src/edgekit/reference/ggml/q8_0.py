"""Q8_0: 8-bit codes, one float16 scale for 32 elements; 8.5 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-33     qs       int8 codes, in order

    d = max|x| / 127        q = roundf(x * (1 / d)), ties away from zero        value = q * d

The codes are chosen with d before it is rounded to float16. An importance matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_q8_0_ref``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._bounds import grid_bound, half_ulp
from edgekit.reference.ggml._codes import reciprocal, round_away, truncate
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, from_lanes, lanes, peak, spread
from edgekit.typing import F32, F64

SIZE = 32
IMPORTANCE = "unused"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 32]; importance is ignored."""
    v = lanes(x)
    d = peak(np.abs(v)) / np.float32(127)
    v *= spread(reciprocal(d))
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = d
    blocks["qs"] = from_lanes(truncate(round_away(v), np.int8))
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 32]."""
    d: F32 = blocks["d"].astype(np.float32)
    value: F32 = blocks["qs"] * d[:, None]
    return value


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, and half a unit in the last place of the stored scale for each of up to 127 steps."""
    d = blocks["d"]
    return grid_bound(x, d.astype(np.float64), 0.0, -127, 127, drift=half_ulp(d))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode"]
