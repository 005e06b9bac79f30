"""IQ2_XS: groups of 8 magnitudes from a grid of 512 points, seven signs of every eight; 2.3125 bits a weight.

    bytes    field     meaning
    0-1      d         float16 scale
    2-65     qs        of each group of 8, as uint16: its point, index into the grid of IQ2_XS, in bits 0-8; 7 signs
    66-73    scales    4-bit scales of sub-blocks of 16: sub-block 2j low, 2j + 1 high

    value = d * (scale + 0.5) / 4 * MAGNITUDES[code] * sign

A set sign bit is a minus; the eighth of every eight is the parity of the other seven. The search of `_grid_search` is
weighted by ``qw * sqrt(mean(x²) + x²)``; ggml does not encode without an importance matrix.
Source: ggml 0.25.3, ``quantize_iq2_xs``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.reference.ggml import _grid_search as search
from edgekit.reference.ggml._grid_blocks import MAGNITUDES, PARITY, farthest, finished, signed
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks
from edgekit.reference.ggml._search import EPSILON
from edgekit.typing import F32, F64

SIZE = search.SIZE
IMPORTANCE = "block"
NEEDS_IMPORTANCE = True
LAYOUT = np.dtype([("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)])
SEARCH = search.Search("IQ2_XS", bits=2, top=3, distances=2, sub=16, tries=9, step=0.1)
_SUBS = SIZE // SEARCH.sub


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    weights = search.sub_blocks(search.weights_of(x, importance, 1), SEARCH.sub)
    fit = search.fit(SEARCH, search.sub_blocks(x, SEARCH.sub), weights, EPSILON, even=True)
    end = finished(fit, len(x))
    signs = search.by_block(fit.signs & np.uint8(127), len(x)).astype(np.uint16)
    blocks = np.zeros(len(x), LAYOUT)
    blocks["d"] = end.d
    blocks["qs"] = search.by_block(fit.point, len(x)).astype(np.uint16) | signs << np.uint16(9)
    blocks["scales"] = pack_lsb(end.scales, 4)
    return end.without_zeros(blocks)


def _step(blocks: Blocks) -> F32:
    d: F32 = blocks["d"].astype(np.float32)
    scales = unpack_lsb(blocks["scales"], 4, _SUBS).astype(np.float32)
    return d[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    magnitudes = MAGNITUDES[SEARCH.points.codes[blocks["qs"] & np.uint16(511)]].reshape(-1, SEARCH.sub)
    signs = PARITY[blocks["qs"] >> np.uint16(9)]
    return signed(_step(blocks).reshape(-1, 1) * magnitudes, signs).reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), float(MAGNITUDES[-1]))


__all__ = ["IMPORTANCE", "LAYOUT", "NEEDS_IMPORTANCE", "SEARCH", "SIZE", "bound", "decode", "encode"]
