"""IQ2_S: groups of 8 magnitudes from a grid of 1024 points, a sign for each element; 2.5625 bits a weight.

    bytes    field     meaning
    0-1      d         float16 scale
    2-33     qs        bits 0-7 of the point of each group of 8, index into the grid of IQ2_S
    34-65    signs     a set bit is a minus, element 0 lowest
    66-73    qh        bits 8-9 of the points, four groups a byte, group 0 lowest
    74-81    scales    4-bit scales of sub-blocks of 16: sub-block 2j low, 2j + 1 high

    value = d * (scale + 0.5) / 4 * MAGNITUDES[code] * sign

The search of `_grid_search` is weighted by ``mean(x²) / 2 + x²``, or with an importance matrix by
``qw * sqrt(2 * mean(x²) + x²)``. d is stored 1.25 % smaller than the largest scale asks for.
Source: ggml 0.25.3, ``quantize_iq2_s``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.reference.ggml import _grid_search as search
from edgekit.reference.ggml._grid_blocks import MAGNITUDES, farthest, finished, signed
from edgekit.reference.ggml._importance import Importance, block_power
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F32, F64, U8

SIZE = search.SIZE
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)])
SEARCH = search.Search("IQ2_S", bits=2, top=3, distances=1, sub=16, tries=9, step=0.1)
_EPSILON = np.float32(1e-8)
_FUDGE = np.float32(0.9875)
_SUBS = SIZE // SEARCH.sub


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    weights = search.sub_blocks(_weights(x, importance), SEARCH.sub)
    fit = search.fit(SEARCH, search.sub_blocks(x, SEARCH.sub), weights, _EPSILON, even=False)
    end = finished(fit, len(x), _FUDGE)
    index = search.by_block(fit.point, len(x))
    high: U8 = (index >> 8).astype(np.uint8)
    blocks = np.zeros(len(x), LAYOUT)
    blocks["d"] = end.d
    blocks["qs"], blocks["qh"] = index.astype(np.uint8), pack_lsb(high, 2)
    blocks["signs"] = search.by_block(fit.signs, len(x))
    blocks["scales"] = pack_lsb(end.scales, 4)
    return blocks


def _weights(x: F32, importance: Importance | None) -> F32:
    if importance is not None:
        return search.weights_of(x, importance, 2)
    power = np.float32(2) * block_power(x) / np.float32(SIZE)
    return np.float32(0.25) * power[:, None] + np.square(x)


def _step(blocks: Blocks) -> F32:
    d: F32 = blocks["d"].astype(np.float32)
    scales = unpack_lsb(blocks["scales"], 4, _SUBS).astype(np.float32)
    return d[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    index = blocks["qs"] | unpack_lsb(blocks["qh"], 2, 32).astype(np.uint16) << np.uint16(8)
    magnitudes = MAGNITUDES[SEARCH.points.codes[index]].reshape(-1, SEARCH.sub)
    return signed(_step(blocks).reshape(-1, 1) * magnitudes, blocks["signs"]).reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), float(MAGNITUDES[-1]))


__all__ = ["IMPORTANCE", "LAYOUT", "SEARCH", "SIZE", "bound", "decode", "encode"]
