"""IQ3_XXS: groups of 4 magnitudes from a grid of 256 points, seven signs of every eight; 3.0625 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-65     qs       point of each group of 4, index into the grid of IQ3_XXS
    66-97    words    of each sub-block of 32, as uint32: four times 7 signs, and above them a 4-bit scale

    value = d * (scale + 0.5) / 2 * MAGNITUDES[code] * sign

A set sign bit is a minus; the eighth of every eight is the parity of the other seven, so that their number is even. The
search of `_grid_search` is weighted by x², or with an importance matrix by ``qw * sqrt(2 * mean(x²) + x²)``. d is
stored 1.25 % larger than the largest scale asks for.
Source: ggml 0.25.3, ``quantize_iq3_xxs``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _grid_search as search
from edgekit.reference.ggml._grid_blocks import farthest, finished, seven_signs, signed, with_parity
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F32, F64

SIZE = search.SIZE
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("words", "<u4", 8)])
MAGNITUDES = np.array([4, 12, 20, 28, 36, 44, 52, 62], np.float32)
SEARCH = search.Search("IQ3_XXS", bits=3, top=8, distances=2, sub=32, tries=15, step=0.2)
_EPSILON = np.float32(1e-8)
_FUDGE = np.float32(1.0125)
_SUBS = SIZE // SEARCH.sub


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    weights = search.sub_blocks(search.weights_of(x, importance, 2), SEARCH.sub)
    fit = search.fit(SEARCH, search.sub_blocks(x, SEARCH.sub), weights, _EPSILON, even=True)
    end = finished(fit, len(x), _FUDGE)
    blocks = np.zeros(len(x), LAYOUT)
    blocks["d"] = end.d
    blocks["qs"] = search.by_block(fit.point, len(x))
    signs = seven_signs(fit.signs).reshape(len(x), _SUBS)
    blocks["words"] = signs | end.scales.astype(np.uint32) << np.uint32(28)
    return end.without_zeros(blocks)


def _step(blocks: Blocks) -> F32:
    d: F32 = blocks["d"].astype(np.float32)
    scales = (blocks["words"] >> np.uint32(28)).astype(np.float32)
    return d[:, None] * (np.float32(0.5) + scales) * np.float32(0.5)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    magnitudes = MAGNITUDES[SEARCH.points.codes[blocks["qs"]]].reshape(-1, SEARCH.sub)
    return signed(_step(blocks).reshape(-1, 1) * magnitudes, with_parity(blocks["words"])).reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), float(MAGNITUDES[-1]))


__all__ = ["IMPORTANCE", "LAYOUT", "MAGNITUDES", "SEARCH", "SIZE", "bound", "decode", "encode"]
