"""Q1_0: the sign of each element, one float16 scale for 128 elements; 1.125 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-17     qs       one bit each, element 0 lowest: 1 where x >= 0, also for -0

    d = mean|x|, summed one float32 after the other        value = d or -d

An importance matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_q1_0_ref``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, columns
from edgekit.reference.ggml._search import total
from edgekit.typing import F32, F64

SIZE = 128
IMPORTANCE = "unused"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 128]; importance is ignored."""
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = total(np.abs(columns(x))) / np.float32(SIZE)
    blocks["qs"] = np.packbits(x >= 0, axis=-1, bitorder="little")
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 128]."""
    signs = np.unpackbits(blocks["qs"], axis=-1, bitorder="little").view(np.int8)
    d: F32 = blocks["d"].astype(np.float32)
    return (signs * np.int8(2) - np.int8(1)) * d[:, None]


def bound(x: F32, blocks: Blocks) -> F64:
    """The error itself, ``||x| - d|``: there is one value for each sign."""
    d = blocks["d"].astype(np.float64)
    return np.abs(np.abs(x.astype(np.float64)) - d[:, None])


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode"]
