"""IQ4_NL: 4-bit codes for sixteen uneven values, one float16 scale for 32 elements; 4.5 bits a weight.

    bytes    field    meaning
    0-1      d        float16 scale
    2-17     qs       4-bit codes: element j low, element j + 16 high

    value = d * VALUES[q]        q = nearest(x / d); values and search in `_nonlinear`

The search is weighted by x², or with an importance matrix by ``qw * sqrt(2 * mean(x²) + x²)`` over the block. The
codes are chosen before d is rounded to float16. This is what ``ggml_quantize_chunk`` computes; its ``_ref`` function
tries no other scales.
Source: ggml 0.25.3, ``quantize_iq4_nl``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _nonlinear
from edgekit.reference.ggml._bounds import half_ulp
from edgekit.reference.ggml._codes import reciprocal
from edgekit.reference.ggml._importance import Importance, search_weights
from edgekit.reference.ggml._layout import Blocks, columns, pack_planes, to_lanes, unpack_planes
from edgekit.reference.ggml._search import total
from edgekit.typing import F32, F64

SIZE = 32
IMPORTANCE = "block"
LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 32]."""
    turned = columns(x)
    weights = np.square(turned)
    if importance is not None:
        power = total(weights) * np.float32(2 / SIZE)
        weights = search_weights(turned, columns(importance.columns), power)
    d = _nonlinear.search(turned, weights)
    codes = to_lanes(columns(_nonlinear.codes(turned, reciprocal(d))))
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = d
    blocks["qs"] = pack_planes(codes, 1, 2, 4)
    return blocks


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 32]."""
    codes = unpack_planes(blocks["qs"], 1, 2, 4)
    d: F32 = blocks["d"].astype(np.float32)
    return _nonlinear.VALUES[codes] * d[:, None]


def bound(x: F32, blocks: Blocks) -> F64:
    """Return half the gap around x, plus half a unit in the last place of the scale for each of up to 127 steps."""
    return _nonlinear.nearest_bound(x, blocks["d"].astype(np.float64), half_ulp(blocks["d"]))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode"]
