"""Q4_K: 4-bit codes in 8 sub-blocks of 32 with 6-bit scales and minima; 4.5 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale of the scales
    2-3      dmin     float16 scale of the minima
    4-15     scales   8 scales and 8 minima of 6 bits, see `_sixbit`
    16-143   qs       4-bit codes: of each 64, element j low, element j + 32 high

    value = d * scale * q - dmin * minimum
    q = clip(nearest_int((x + dmin * minimum) / (d * scale)), 0, 15)

Scale and minimum of each sub-block come from the `affine` search, weighted by ``sqrt(mean(x²)) + |x|`` over the
sub-block; their maxima become 63. With an importance matrix the weights are ``qw * sqrt(2 * mean(x²) + x²)`` over
the super-block, the search is finer, and the scales themselves are searched.
Source: ggml 0.25.3, ``quantize_row_q4_K_ref`` and ``_impl``. Proved bit for bit against libggml-base of
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
TOP = 15
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_STEPS = affine_steps(-1.0, 0.1, 20, TOP)


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    blocks = np.empty(len(x), LAYOUT)
    codes = _sixbit.encode(x, importance, blocks, TOP, _STEPS)
    blocks["qs"] = pack_planes(codes, 4, 2, 4)
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    return _sixbit.decode(blocks, _codes(blocks))


def _codes(blocks: Blocks) -> U8:
    return unpack_planes(blocks["qs"], 4, 2, 4)


def bound(x: F32, blocks: Blocks) -> F64:
    """See `_sixbit.bound`."""
    return _sixbit.bound(x, blocks, TOP)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "TOP", "bound", "decode", "encode"]
