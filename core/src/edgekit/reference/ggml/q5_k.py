"""Q5_K: 5-bit codes in 8 sub-blocks of 32 with 6-bit scales and minima; 5.5 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale of the scales
    2-3      dmin     float16 scale of the minima
    4-15     scales   8 scales and 8 minima of 6 bits, see `_sixbit`
    16-47    qh       bit 4 of the codes: bit b of byte j belongs to element 32 * b + j
    48-175   qs       bits 0-3 of the codes: of each 64, element j low, element j + 32 high

    value = d * scale * q - dmin * minimum
    q = clip(nearest_int((x + dmin * minimum) / (d * scale)), 0, 31)

Scales and minima are found as in Q4_K, with other steps in the search. Those that came out negative (where hardly any
column has importance) wrap around and are cut off at 63; those of Q4_K spill.
Source: ggml 0.25.3, ``quantize_row_q5_K_ref`` and ``_impl``. Proved bit for bit against libggml-base of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _sixbit
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, pack_planes, unpack_planes
from edgekit.reference.ggml._search import affine_steps
from edgekit.typing import F32, F64, U8

SIZE = 256
TOP = 31
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_STEPS = affine_steps(-0.5, 0.1, 15, TOP)


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    blocks = np.empty(len(x), LAYOUT)
    codes = _sixbit.encode(x, importance, blocks, TOP, _STEPS)
    blocks["qh"] = pack_planes(codes, 1, 8, 1, first=4)
    blocks["qs"] = pack_planes(codes, 4, 2, 4)
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    return _sixbit.decode(blocks, _codes(blocks))


def _codes(blocks: Blocks) -> U8:
    return unpack_planes(blocks["qs"], 4, 2, 4) | unpack_planes(blocks["qh"], 1, 8, 1, first=4)


def bound(x: F32, blocks: Blocks) -> F64:
    """See `_sixbit.bound`."""
    return _sixbit.bound(x, blocks, TOP)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "TOP", "bound", "decode", "encode"]
