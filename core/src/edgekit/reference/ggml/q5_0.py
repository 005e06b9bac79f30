"""Q5_0: 5-bit codes, one float16 scale for 32 elements; 5.5 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-5      qh       bit 4 of the codes, element 0 lowest
    6-21     qs       bits 0-3 of the codes: element j low, element j + 16 high

    d = max / -16        q = min(31, int8(x * (1 / d) + 16.5))        value = (q - 16) * d

`max` is the element of largest magnitude with its sign, of equal ones the first: that end of the range is exact.

The codes are chosen before d is rounded to float16. With an importance matrix scale and codes come from the
`symmetric` search, weighted by ``qw * sqrt(mean(row²) + x²)``, and nothing is computed anew.
Source: ggml 0.25.3, ``quantize_row_q5_0_ref`` and ``_impl``. Proved bit for bit against libggml-base of
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
TOP = 16
LAYOUT = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 32]."""
    blocks = np.empty(len(x), LAYOUT)
    if importance is None:
        d, codes = _legacy.encode_symmetric(x, TOP)
    else:
        d, codes = _legacy.encode_symmetric_weighted(x, TOP, importance)
    blocks["d"] = d
    blocks["qh"] = _legacy.high_bits(codes)
    blocks["qs"] = pack_planes(codes, 1, 2, 4)
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 32]."""
    codes = unpack_planes(blocks["qs"], 1, 2, 4)
    codes |= np.unpackbits(blocks["qh"], axis=-1, bitorder="little") << np.uint8(4)
    return (codes.view(np.int8) - np.int8(TOP)) * blocks["d"].astype(np.float32)[:, None]


def bound(x: F32, blocks: Blocks) -> F64:
    """See `_legacy.symmetric_bound`."""
    return _legacy.symmetric_bound(x, blocks["d"], blocks == encode(x), TOP)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "TOP", "bound", "decode", "encode"]
