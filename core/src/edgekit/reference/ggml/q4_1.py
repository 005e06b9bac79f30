"""Q4_1: 4-bit codes, a float16 scale and a float16 minimum for 32 elements; 5 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-3      m        float16 minimum
    4-19     qs       4-bit codes: element j low, element j + 16 high

    d = (max - min) / 15        q = min(15, int8((x - min) * (1 / d) + 0.5))        value = q * d + m

The codes are chosen before d and min are rounded to float16. With an importance matrix scale, minimum and codes
come from the `affine` search, weighted by ``qw * sqrt(mean(row²) + x²)``, and nothing is computed anew.
Source: ggml 0.25.3, ``quantize_row_q4_1_ref`` and ``_impl``. Proved bit for bit against libggml-base of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _legacy
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, pack_planes, unpack_planes
from edgekit.typing import F32, F64

SIZE = _legacy.SIZE
IMPORTANCE = "row"
TOP = 15
LAYOUT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 32]."""
    blocks = np.empty(len(x), LAYOUT)
    if importance is None:
        d, m, codes = _legacy.encode_affine(x, TOP)
    else:
        d, m, codes = _legacy.encode_affine_weighted(x, TOP, importance)
    blocks["d"] = d
    blocks["m"] = m
    blocks["qs"] = pack_planes(codes, 1, 2, 4)
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 32]."""
    codes = unpack_planes(blocks["qs"], 1, 2, 4)
    value = codes * blocks["d"].astype(np.float32)[:, None]
    value += blocks["m"].astype(np.float32)[:, None]
    return value


def bound(x: F32, blocks: Blocks) -> F64:
    """See `_legacy.affine_bound`."""
    return _legacy.affine_bound(x, blocks["d"], blocks["m"], blocks == encode(x), TOP)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "TOP", "bound", "decode", "encode"]
