"""IQ1_S: groups of 8 ternary codes from a grid of 2048 points, shifted levels; 1.5625 bits a weight.

::

    bytes    field    meaning
    0-1      d        float16 scale
    2-33     qs       bits 0-7 of the point of each group of 8, index into the grid of IQ1_S
    34-49    qh       of each sub-block of 32, as uint16: four times bits 8-10 of the points; bits 12-14 a 3-bit scale;
                      bit 15 set where the levels are shifted down

    value = d * (2 * scale + 1) * (code - 1 ± 0.125)

Levels and search in `_grid_ternary`; the weights are ``qw * sqrt(2 * mean(x²) + x²)``. ggml does not encode without an
importance matrix. d is stored 12.5 % larger than the largest scale asks for.
Source: ggml 0.25.3, ``quantize_iq1_s``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _grid_ternary as ternary
from edgekit.reference.ggml._grid_blocks import farthest
from edgekit.reference.ggml._grid_search import SIZE, by_block, sub_blocks, weights_of
from edgekit.reference.ggml._grid_ternary import points as points
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F32, F64, U16

IMPORTANCE = "block"
NEEDS_IMPORTANCE = True
SUB = 32
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)])
_SUBS = SIZE // SUB
_EPSILON = np.float32(1e-12)
_FUDGE = np.float32(1.125)
_SHIFTS = 3 * np.arange(4, dtype=np.uint16)


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    turned, weights = sub_blocks(x, SUB), sub_blocks(weights_of(x, importance, 2), SUB)
    order = ternary.Sorted.of(turned, weights)
    cut = _search(order)
    known = (cut.shift >= 0) & ~(np.abs(turned).max(axis=0) < _EPSILON)
    shift = np.where(cut.scale < 0, 1 - cut.shift, cut.shift)
    shift[~known] = 0
    codes, scale = ternary.codes_of(cut, order.order), np.abs(cut.scale)
    fit = ternary.onto_grid(turned, weights, codes, scale, np.tile(shift, (4, 1)))
    index, scales = fit.point * known, np.where(known, fit.scale, np.float32(0)).reshape(-1, _SUBS)
    largest = scales.max(axis=1)
    d, some = largest / np.float32(15), largest != 0
    blocks = np.zeros(len(x), LAYOUT)
    blocks["qs"] = by_block(index, len(x)).astype(np.uint8)
    high: U16 = (by_block(index, len(x)) >> 8).astype(np.uint16).reshape(-1, _SUBS, 4) << _SHIFTS
    ends = ternary.scale_codes(scales, d).astype(np.uint16) | shift.reshape(-1, _SUBS).astype(np.uint16) << np.uint16(3)
    blocks["qh"] = np.bitwise_or.reduce(high, axis=2) | (ends << np.uint16(12)) * some[:, None]
    stored = np.where(some, d * _FUDGE, np.float32(0))
    stored[(fit.lost & known).reshape(-1, _SUBS).any(axis=1)] = np.inf
    blocks["d"] = stored
    return blocks


def _search(order: ternary.Sorted) -> ternary.Cut:
    """Return the best cut of each sub-block."""
    zero = np.zeros_like(order.x[:1])
    sum_x = np.cumsum(np.concatenate([zero, order.weights * order.x]), axis=0, dtype=np.float32)
    sum_w = np.cumsum(np.concatenate([zero, order.weights]), axis=0, dtype=np.float32)
    best = ternary.Cut.none(order.x.shape[1])
    for first, second in ternary.cuts(SUB):
        x = sum_x[first] - sum_x[0], sum_x[second] - sum_x[first], sum_x[SUB] - sum_x[second]
        w = sum_w[first] - sum_w[0], sum_w[second] - sum_w[first], sum_w[SUB] - sum_w[second]
        for shift, (low, middle, high) in enumerate(ternary.LEVELS):
            sum_qx = x[0] * low + x[1] * middle + x[2] * high
            sum_q2 = w[0] * low * low + w[1] * middle * middle + w[2] * high * high
            best.consider(sum_qx, sum_q2, first, second, shift)
    return best


def _step(blocks: Blocks) -> F32:
    d: F32 = blocks["d"].astype(np.float32)
    scales = blocks["qh"] >> np.uint16(12) & np.uint16(7)
    step: F32 = d[:, None] * (2 * scales + 1).astype(np.float32)
    return step


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    high = blocks["qh"][..., None] >> _SHIFTS & np.uint16(7)
    index = blocks["qs"] | high.reshape(len(blocks), -1) << np.uint16(8)
    shifts = np.repeat(blocks["qh"] >> np.uint16(15), 4, axis=1)
    levels = ternary.LEVELS[shifts[..., None], ternary.points().codes[index]]
    values: F32 = _step(blocks).reshape(-1, 1) * levels.reshape(-1, SUB)
    return values.reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), float(ternary.LEVELS.max()))


__all__ = ["IMPORTANCE", "LAYOUT", "NEEDS_IMPORTANCE", "SIZE", "SUB", "bound", "decode", "encode", "points"]
