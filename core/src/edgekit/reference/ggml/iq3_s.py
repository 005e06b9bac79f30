"""IQ3_S: groups of 4 magnitudes from a grid of 512 points, a sign for each element; 3.4375 bits a weight.

    bytes      field     meaning
    0-1        d         float16 scale
    2-65       qs        bits 0-7 of the point of each group of 4, index into the grid of IQ3_S
    66-73      qh        bit 8 of the points, a byte for each sub-block of 32, group 0 lowest
    74-105     signs     a set bit is a minus, element 0 lowest
    106-109    scales    4-bit scales: sub-block 2j low, 2j + 1 high

    value = d * (2 * scale + 1) * (2 * code + 1) * sign

The search of `_grid_search` is weighted by x², or with an importance matrix by ``qw * sqrt(2 * mean(x²) + x²)``. d is
stored 3.3 % larger than the largest scale asks for.

Where all elements of a sub-block are zero, ggml writes the `qs` and `signs` of the sub-blocks after it one sub-block
too early, and these decode to other values; the reference does the same, because its bytes equal ggml's.
Source: ggml 0.25.3, ``quantize_iq3_s``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.reference.ggml import _grid_search as search
from edgekit.reference.ggml._grid_blocks import farthest, finished, signed
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F32, F64, U8, Bools

SIZE = search.SIZE
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])
SEARCH = search.Search("IQ3_S", bits=3, top=8, distances=3, sub=32, tries=9, step=0.2, all_again=True)
_SMALLEST = np.finfo(np.float32).smallest_subnormal
_FUDGE = np.float32(1.033)
_SUBS = SIZE // SEARCH.sub


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    weights = search.sub_blocks(search.weights_of(x, importance, 2), SEARCH.sub)
    fit = search.fit(SEARCH, search.sub_blocks(x, SEARCH.sub), weights, _SMALLEST, even=False)
    end = finished(fit, len(x), _FUDGE)
    index, signs = search.by_block(fit.point, len(x)), search.by_block(fit.signs, len(x))
    blocks = np.zeros(len(x), LAYOUT)
    blocks["d"] = end.d
    blocks["qh"] = np.packbits(index >> 8, axis=1, bitorder="little")
    blocks["qs"] = _closed_up(index.astype(np.uint8), end.skipped)
    blocks["signs"] = _closed_up(signs, end.skipped)
    blocks["scales"] = pack_lsb(end.scales, 4)
    return blocks


def _closed_up(fields: U8, skipped: Bools) -> U8:
    """Return the bytes of sub-blocks [blocks, n] with those of skipped ones [blocks, 8] moved to the end, as zeros."""
    by_sub = fields.reshape(len(fields), _SUBS, -1) * ~skipped[..., None]
    order = np.argsort(skipped, axis=1, kind="stable")
    return np.take_along_axis(by_sub, order[..., None], axis=1).reshape(fields.shape)


def _step(blocks: Blocks) -> F32:
    d: F32 = blocks["d"].astype(np.float32)
    scales = unpack_lsb(blocks["scales"], 4, _SUBS)
    return d[:, None] * (1 + 2 * scales).astype(np.float32)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    index = blocks["qs"] | np.unpackbits(blocks["qh"], axis=1, bitorder="little").astype(np.uint16) << np.uint16(8)
    magnitudes = (2 * SEARCH.points.codes[index] + 1).astype(np.float32).reshape(-1, SEARCH.sub)
    return signed(_step(blocks).reshape(-1, 1) * magnitudes, blocks["signs"]).reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), 2.0 * SEARCH.top - 1)


__all__ = ["IMPORTANCE", "LAYOUT", "SEARCH", "SIZE", "bound", "decode", "encode"]
