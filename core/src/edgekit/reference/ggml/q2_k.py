"""Q2_K: 2-bit codes in 16 sub-blocks of 16 with 4-bit scales and minima; 2.625 bits a weight.

    bytes    field    meaning
    0-15     scales   scale of sub-block j in bits 0-3 of byte j, minimum in bits 4-7
    16-79    qs       2-bit codes: of each 128, elements j, j + 32, j + 64, j + 96 from the lowest bits up
    80-81    d        float16 scale of the scales
    82-83    dmin     float16 scale of the minima

    value = d * scale * q - dmin * minimum
    q = clip(nearest_int((x + dmin * minimum) / (d * scale)), 0, 3)

Scale and minimum of each sub-block come from the `affine` search on absolute errors, weighted by ``|x|``; their
maxima become 15. With an importance matrix the errors are squared, the weights ``qw * sqrt(mean(x²) + x²)`` over
the super-block, the search is finer, and the scales themselves are searched.
Source: ggml 0.25.3, ``quantize_row_q2_K_ref`` and ``_impl``. Proved bit for bit against libggml-base of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._bounds import grid_bound
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, columns, pack_planes, unpack_planes
from edgekit.reference.ggml._search import affine_steps
from edgekit.reference.ggml._superblocks import AffineFit, fit_plain, fit_weighted, importance_columns, super_codes
from edgekit.typing import F32, F64

SIZE = 256
SUB = 16
TOP = 3
IMPORTANCE = "block"
LAYOUT = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_SCALE_TOP = 15


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]."""
    fit = _fit(x, importance)
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"], blocks["dmin"] = fit.scales.d, fit.minima.d
    blocks["scales"] = fit.scales.codes | (fit.minima.codes << np.uint8(4))
    codes = super_codes(x, *steps_and_offsets(blocks), 0, TOP, fit.searched)
    blocks["qs"] = pack_planes(codes, 2, 4, 2)
    return blocks


def _fit(x: F32, importance: Importance | None) -> AffineFit:
    turned = columns(x.reshape(-1, SUB))
    if importance is None:
        steps = affine_steps(-0.5, 0.1, 15, TOP)
        return fit_plain(turned, np.abs(turned), TOP, steps, _SCALE_TOP, absolute=True)
    weights = importance_columns(x, importance, SUB, 1)
    return fit_weighted(turned, weights, TOP, affine_steps(-0.9, 0.05, 36, TOP), _SCALE_TOP)


def steps_and_offsets(blocks: Blocks) -> tuple[F32, F32]:
    """The stored scale and minimum of each sub-block, multiplied out: float32 [blocks, 16], exact."""
    scales, minima = blocks["scales"] & np.uint8(15), blocks["scales"] >> np.uint8(4)
    step = blocks["d"].astype(np.float32)[:, None] * scales
    offset = blocks["dmin"].astype(np.float32)[:, None] * minima
    return step, offset


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    step, offset = steps_and_offsets(blocks)
    value: F32 = unpack_planes(blocks["qs"], 2, 4, 2).reshape(-1, SUB) * step.reshape(-1, 1)
    value -= offset.reshape(-1, 1)
    return value.reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, since codes are chosen under the stored scales; outside of the range, the distance to it.

    A sub-block whose scale came out as zero holds minus its minimum everywhere.
    """
    step, offset = steps_and_offsets(blocks)
    sub = x.reshape(-1, SUB)
    return grid_bound(sub, step.astype(np.float64), -offset.astype(np.float64), 0, TOP, wraps=True).reshape(x.shape)


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "SUB", "TOP", "bound", "decode", "encode", "steps_and_offsets"]
