"""IQ2_XXS: groups of 8 magnitudes from a grid of 256 points, seven signs of every eight; 2.0625 bits a weight.

::

    bytes    field    meaning
    0-1      d        float16 scale
    2-65     words    of each sub-block of 32 two uint32: the points of its 4 groups, 8 bits each, indices into the grid
                      of IQ2_XXS; then four times 7 signs, and above them a 4-bit scale

    value = d * (scale + 0.5) / 4 * MAGNITUDES[code] * sign

A set sign bit is a minus; the eighth of every eight is the parity of the other seven. The first scale is that of
``make_qp_quants`` with codes 0 to 4. The search of `_grid_search` is weighted by ``qw * sqrt(mean(x²) + x²)``; ggml
does not encode without an importance matrix.
Source: ggml 0.25.3, ``quantize_iq2_xxs``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _grid_search as search
from edgekit.reference.ggml._grid_blocks import MAGNITUDES, farthest, finished, seven_signs, signed, with_parity
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks
from edgekit.reference.ggml._search import EPSILON
from edgekit.typing import F32, F64

SIZE = search.SIZE
IMPORTANCE = "block"
NEEDS_IMPORTANCE = True
LAYOUT = np.dtype([("d", "<f2"), ("words", "<u4", (8, 2))])
SEARCH = search.Search(
    "IQ2_XXS", bits=2, top=3, distances=2, sub=32, tries=6, step=0.1, all_again=True, from_positive=True
)
_SUBS = SIZE // SEARCH.sub


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    weights = search.sub_blocks(search.weights_of(x, importance, 1), SEARCH.sub)
    fit = search.fit(SEARCH, search.sub_blocks(x, SEARCH.sub), weights, EPSILON, even=True)
    end = finished(fit, len(x))
    blocks = np.zeros(len(x), LAYOUT)
    blocks["d"] = end.d
    points = search.by_block(fit.point, len(x)).astype(np.uint8).view("<u4")
    signs = seven_signs(fit.signs).reshape(len(x), _SUBS) | end.scales.astype(np.uint32) << np.uint32(28)
    blocks["words"] = np.stack([points, signs], axis=2)
    return end.without_zeros(blocks)


def _step(blocks: Blocks) -> F32:
    d: F32 = blocks["d"].astype(np.float32)
    scales = (blocks["words"][..., 1] >> np.uint32(28)).astype(np.float32)
    return d[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    index = np.ascontiguousarray(blocks["words"][..., 0]).view(np.uint8)
    magnitudes = MAGNITUDES[SEARCH.points.codes[index]].reshape(-1, SEARCH.sub)
    signs = with_parity(blocks["words"][..., 1])
    return signed(_step(blocks).reshape(-1, 1) * magnitudes, signs).reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Return the distance from x to the farthest of the values that its sub-block can hold."""
    return farthest(x, _step(blocks), float(MAGNITUDES[-1]))


__all__ = ["IMPORTANCE", "LAYOUT", "NEEDS_IMPORTANCE", "SEARCH", "SIZE", "bound", "decode", "encode"]
