"""IQ1_M: groups of 8 ternary codes from a grid of 2048 points, shifted levels, small sub-blocks; 1.75 bits a weight.

::

    bytes    field     meaning
    0-31     qs        bits 0-7 of the point of each group of 8, index into the grid of IQ1_S
    32-47    qh        of each sub-block of 16 a byte, for its groups low and high: bits 8-10 of the point, and a bit
                       that is set where the levels are shifted down
    48-55    scales    of each four sub-blocks, as uint16: four times a 3-bit scale; bits 12-15 are a quarter of the
                       float16 d, bits 0-3 first

    value = d * (2 * scale + 1) * (code - 1 ± 0.125)

Levels and search in `_grid_ternary`, with a shift for each group of 8. The weights are x², or with an importance matrix
``qw * sqrt(2 * mean(x²) + x²)``. At the end d is fitted to the whole block; it is stored 11.25 % larger.
Source: ggml 0.25.3, ``quantize_iq1_m``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _grid_ternary as ternary
from edgekit.reference.ggml._grid_blocks import farthest
from edgekit.reference.ggml._grid_search import SIZE, by_block, sub_blocks, weights_of
from edgekit.reference.ggml._grid_ternary import points as points
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F16, F32, F64, U8, U16, Bools, Indices

IMPORTANCE = "block"
SUB = 16
LAYOUT = np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)])
_SUBS = SIZE // SUB
_EPSILON = np.float32(1e-7)
_FUDGE = np.float32(1.1125)
#: The shifts of a sub-block's two groups in the order in which they are tried: rows of `LEVELS`.
_PAIRS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
_SHIFTS = 3 * np.arange(4, dtype=np.uint16)
_QUARTERS = 4 * np.arange(4, dtype=np.uint16)


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    turned, weights = sub_blocks(x, SUB), sub_blocks(weights_of(x, importance, 2), SUB)
    order = ternary.Sorted.of(turned, weights)
    cut = _search(order)
    known = (cut.shift >= 0) & ~(np.abs(turned).max(axis=0) < _EPSILON)
    pair = np.where(cut.scale < 0, 3 - cut.shift, cut.shift)
    pair[~known] = 0
    shifts = np.ascontiguousarray(_PAIRS[pair].T)
    codes, scale = ternary.codes_of(cut, order.order), np.abs(cut.scale)
    fit = ternary.onto_grid(turned, weights, codes, scale, shifts)
    index, scales = fit.point * known, np.where(known, fit.scale, np.float32(0)).reshape(-1, _SUBS)
    largest = scales.max(axis=1)
    some = largest != 0
    ends = ternary.scale_codes(scales, largest / np.float32(15)) * some[:, None]
    d = _whole_scale(turned, weights, ternary.levels_of(index, shifts), ends, largest / np.float32(15))
    stored = np.where(some, d * _FUDGE, np.float32(0))
    stored[(fit.lost & known).reshape(-1, _SUBS).any(axis=1)] = np.inf
    blocks = np.zeros(len(x), LAYOUT)
    blocks["qs"] = by_block(index, len(x)).astype(np.uint8)
    high = (index >> 8 | shifts << 3).astype(np.uint8)
    high[:, ~np.repeat(some, _SUBS)] &= np.uint8(7)
    blocks["qh"] = (high[0] | high[1] << np.uint8(4)).reshape(-1, _SUBS)
    blocks["scales"] = _packed(ends, stored.astype(np.float16))
    return blocks


def _search(order: ternary.Sorted) -> ternary.Cut:
    """Return the best cut of each sub-block, from sums over the beginning of each half of it.

    Neighbouring levels are 1 apart, so that ``sum(weight * level * x)`` is ``total * LEVELS[2] - sum(to the first cut)
    - sum(to the second cut)``; the sum of ``weight * level²`` alike.
    """
    half = order.order >= SUB // 2
    by_x, by_w = order.weights * order.x, order.weights
    sum_x, sum_w = ([_beginnings(v, half == h) for h in (False, True)] for v in (by_x, by_w))
    squares = np.square(ternary.LEVELS)
    best = ternary.Cut.none(order.x.shape[1])
    for first, second in ternary.cuts(SUB):
        qx, q2 = np.empty((2, 2), object), np.empty((2, 2), object)  # of each half, under each shift
        for h, shift in np.ndindex(2, 2):
            top, (low, middle, high) = ternary.LEVELS[shift, 2], squares[shift]
            qx[h, shift] = sum_x[h][SUB] * top - (sum_x[h][first] + sum_x[h][second])
            whole = sum_w[h][SUB] * top * top
            q2[h, shift] = whole + sum_w[h][first] * (low - middle) + sum_w[h][second] * (middle - high)
        for pair, (a, b) in enumerate(_PAIRS):
            best.consider(qx[0, a] + qx[1, b], q2[0, a] + q2[1, b], first, second, pair)
    return best


def _beginnings(terms: F32, chosen: Bools) -> F32:
    """Return the sum of the chosen ones of the first k terms, for every k: [n + 1, sub-blocks]."""
    some = np.where(chosen, terms, np.float32(0))
    return np.cumsum(np.concatenate([np.zeros_like(some[:1]), some]), axis=0, dtype=np.float32)


def _whole_scale(x: F32, weights: F32, levels: F32, ends: U8, d: F32) -> F32:
    """Return the d [blocks] that fits the block best, from columns of sub-blocks; as given where nothing weighs."""
    scaled = levels * (2 * ends + 1).astype(np.float32).reshape(-1)
    whole = [np.ascontiguousarray(by_block(v, len(d)).T) for v in (x, weights, scaled)]
    sum_qx, sum_q2 = ternary.fitted(*whole)
    return np.where(sum_q2 > 0, sum_qx / sum_q2, d)


def _packed(ends: U8, d: F16) -> U16:
    scales = ends.astype(np.uint16).reshape(-1, 4, 4) << _SHIFTS
    quarters = d.view(np.uint16)[:, None] >> _QUARTERS & np.uint16(15)
    packed: U16 = np.bitwise_or.reduce(scales, axis=2) | quarters << np.uint16(12)
    return packed


def scale_of(blocks: Blocks) -> F16:
    """Return the scale d of each block [blocks]."""
    quarters = blocks["scales"] >> np.uint16(12) << _QUARTERS
    bits: U16 = np.bitwise_or.reduce(quarters, axis=1)
    return bits.view(np.float16)


def _step(blocks: Blocks) -> F32:
    scales = blocks["scales"][..., None] >> _SHIFTS & np.uint16(7)
    d: F32 = scale_of(blocks).astype(np.float32)
    step: F32 = d[:, None] * (2 * scales.reshape(-1, _SUBS) + 1).astype(np.float32)
    return step


def _high(blocks: Blocks) -> Indices:
    """Return the high bits of each group [blocks, 32]."""
    both = np.stack([blocks["qh"] & np.uint8(15), blocks["qh"] >> np.uint8(4)], axis=2)
    return both.reshape(len(blocks), -1).astype(np.intp)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    high = _high(blocks)
    index = blocks["qs"] | (high & 7) << 8
    levels = ternary.LEVELS[high[..., None] >> 3, ternary.points().codes[index]]
    values: F32 = _step(blocks).reshape(-1, 1) * levels.reshape(-1, SUB)
    return values.reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), float(ternary.LEVELS.max()))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "SUB", "bound", "decode", "encode", "points", "scale_of"]
