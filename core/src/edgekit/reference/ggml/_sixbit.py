"""The encoder of Q4_K and Q5_K: 8 sub-blocks of 32, with scales and minima of 6 bits packed into 12 bytes.

bytes    bits 0-3         bits 4-5         bits 6-7
0-3      scale 0-3 (bits 0-5)              scale 4-7, bits 4-5
4-7      minimum 0-3 (bits 0-5)            minimum 4-7, bits 4-5
8-11     scale 4-7, bits 0-3               minimum 4-7, bits 0-3 (in bits 4-7)
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._bounds import grid_bound
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, columns
from edgekit.reference.ggml._search import affine_steps, total
from edgekit.reference.ggml._superblocks import AffineFit, fit_plain, fit_weighted, importance_columns, super_codes
from edgekit.typing import F32, F64, U8

SUB = 32
_SUBS = 8
_SCALE_TOP = 63
_Q4_TOP = 15


def pack(scales: U8, minima: U8) -> U8:
    """Pack scales and minima [blocks, 8] into bytes [blocks, 12]; bits beyond six spill into others, as in C."""
    packed = np.empty((len(scales), 12), np.uint8)
    for at, values in ((0, scales), (4, minima)):
        packed[:, at : at + 4] = values[:, :4] | (values[:, 4:] >> np.uint8(4) << np.uint8(6))
    packed[:, 8:] = (scales[:, 4:] & np.uint8(15)) | (minima[:, 4:] << np.uint8(4))
    return packed


def unpack(packed: U8) -> tuple[U8, U8]:
    """Unpack bytes [blocks, 12] to scales and minima [blocks, 8]; the inverse of `pack`."""
    low = packed[:, :8] & np.uint8(63)
    high = packed[:, :8] >> np.uint8(6) << np.uint8(4)
    scales = np.concatenate([low[:, :4], packed[:, 8:] & np.uint8(15) | high[:, :4]], axis=1)
    minima = np.concatenate([low[:, 4:], packed[:, 8:] >> np.uint8(4) | high[:, 4:]], axis=1)
    return scales, minima


def encode(x: F32, importance: Importance | None, blocks: Blocks, top: int, steps: F32) -> U8:
    """Set d, dmin and the scales of the blocks; return the codes in lanes."""
    fit = _fit(x, importance, top, steps)
    blocks["d"], blocks["dmin"] = fit.scales.d, fit.minima.d
    blocks["scales"] = pack(fit.scales.codes, fit.minima.codes)
    return super_codes(x, *steps_and_offsets(blocks), 0, top, fit.searched)


def _fit(x: F32, importance: Importance | None, top: int, steps: F32) -> AffineFit:
    turned = columns(x.reshape(-1, SUB))
    if importance is not None:
        weights = importance_columns(x, importance, SUB, 2)
        fit = fit_weighted(turned, weights, top, affine_steps(-0.9, 0.05, 36, top), _SCALE_TOP)
        return _clipped(fit) if top > _Q4_TOP else fit
    weights = np.abs(turned) + np.sqrt(total(np.square(turned)) / np.float32(SUB))
    return _clipped(fit_plain(turned, weights, top, steps, _SCALE_TOP))


def _clipped(fit: AffineFit) -> AffineFit:
    """Return the fit with codes of scales clipped to 63, as C does except for Q4_K with an importance matrix.

    Negative scales have wrapped around to codes above 63.
    """
    scales, minima = (s._replace(codes=np.minimum(s.codes, _SCALE_TOP)) for s in (fit.scales, fit.minima))
    return fit._replace(scales=scales, minima=minima)


def steps_and_offsets(blocks: Blocks) -> tuple[F32, F32]:
    """Return the stored scale and minimum of each sub-block times d and dmin: float32 [blocks, 8], exact."""
    scales, minima = unpack(blocks["scales"])
    step = blocks["d"].astype(np.float32)[:, None] * scales
    offset = blocks["dmin"].astype(np.float32)[:, None] * minima
    return step, offset


def decode(blocks: Blocks, codes: U8) -> F32:
    """Return the values of codes [blocks, 256], float32."""
    step, offset = steps_and_offsets(blocks)
    value = codes.reshape(-1, SUB) * step.reshape(-1, 1)
    value -= offset.reshape(-1, 1)
    return value.reshape(codes.shape)


def bound(x: F32, blocks: Blocks, top: int) -> F64:
    """Return half a step, since codes are chosen under the stored scales; outside the range, the distance to it.

    In a sub-block whose scale is zero, every value is minus its minimum.
    """
    step, offset = steps_and_offsets(blocks)
    sub = x.reshape(-1, SUB)
    return grid_bound(sub, step.astype(np.float64), -offset.astype(np.float64), 0, top, wraps=True).reshape(x.shape)
