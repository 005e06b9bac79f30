"""What the K types share: super-blocks of 256 elements whose sub-blocks have small integer scales.

    value = d * scale * code - dmin * minimum        affine: Q2_K, Q4_K, Q5_K
    value = d * scale * code                         symmetric: Q3_K, Q6_K

The scales (and minima) of the sub-blocks are searched in float32, then quantized themselves with one float16 for
the super-block; at last each element takes the code nearest to it under the stored scales.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.reference._rounding import nearest_int
from edgekit.reference.ggml._codes import nearest_codes
from edgekit.reference.ggml._importance import Importance, block_power, search_weights
from edgekit.reference.ggml._layout import F32, U8, columns
from edgekit.reference.ggml._search import Affine, affine, affine_codes, positive, total

SIZE = 256


class Scales(NamedTuple):
    """The scales of the sub-blocks, quantized: ``d * codes``."""

    d: F32  # [blocks], not yet rounded to float16
    codes: U8  # [blocks, sub-blocks]


def linear_scales(values: F32, top: int) -> Scales:
    """Quantize values [blocks, sub-blocks] to 0..`top` of their maximum; negative ones wrap around in uint8."""
    peak = np.fmax.reduce(values, axis=1, initial=np.float32(0))
    peak[peak == 0] = 0  # never -0
    inverse = np.where(peak > 0, np.float32(top) / peak, np.float32(0))
    return Scales(peak / np.float32(top), nearest_int(inverse[:, None] * values).astype(np.uint8))


def searched_scales(values: F32, weights: F32, top: int) -> Scales:
    """Quantize values [blocks, sub-blocks] by `positive` search, weighted likewise."""
    found = positive(columns(values), columns(weights), top)
    return Scales(found.scale, columns(found.codes))


class AffineFit(NamedTuple):
    """Scales and minima of the sub-blocks of super-blocks, and the search that they come from."""

    scales: Scales
    minima: Scales
    search: Affine


def fit_plain(x: F32, weights: F32, top: int, steps: F32, scale_top: int, absolute: bool = False) -> AffineFit:
    """Search without an importance matrix; x and weights are columns of sub-blocks [n, sub-blocks]."""
    found = affine(x, weights, top, steps, absolute)
    per_block = (-1, SIZE // x.shape[0])
    return AffineFit(
        linear_scales(found.scale.reshape(per_block), scale_top),
        linear_scales(-found.minimum.reshape(per_block), scale_top),
        found,
    )


def fit_weighted(x: F32, weights: F32, top: int, steps: F32, scale_top: int) -> AffineFit:
    """Search with the weights of an importance matrix, which also weigh the scales of the sub-blocks."""
    found = affine(x, weights, top, steps)
    per_block = (-1, SIZE // x.shape[0])
    sums = total(weights).reshape(per_block)
    return AffineFit(
        searched_scales(found.scale.reshape(per_block), sums, scale_top),
        searched_scales(-found.minimum.reshape(per_block), sums, scale_top),
        found,
    )


def importance_columns(x: F32, importance: Importance, sub: int, factor: int) -> F32:
    """Weights ``qw * sqrt(factor * mean(x²) + x²)`` as columns of sub-blocks [sub, sub-blocks].

    Args:
        x: blocks [blocks, 256].
        importance: of the same blocks.
        sub: elements of a sub-block.
        factor: 1 or 2, times the mean square over the super-block.
    """
    power = np.float32(factor) * block_power(x) / np.float32(SIZE)
    return columns(search_weights(x, importance.columns, power[:, None]).reshape(-1, sub))


def affine_super_codes(
    x: F32, d: npt.NDArray[np.float16], dmin: npt.NDArray[np.float16], scales: U8, minima: U8, top: int, search: Affine
) -> U8:
    """The code of each element under the stored scales [blocks, 256]; the search's where a scale is zero.

    Args:
        x: blocks [blocks, 256].
        d: stored scale of scales [blocks].
        dmin: stored scale of minima.
        scales: stored scales of the sub-blocks [blocks, sub-blocks].
        minima: stored minima of the sub-blocks.
        top: the largest code.
        search: what `affine` found for the sub-blocks.
    """
    sub = x.reshape(scales.size, -1)
    step = (d.astype(np.float32)[:, None] * scales).ravel()
    offset = (dmin.astype(np.float32)[:, None] * minima).ravel()
    codes = nearest_codes(sub, step, offset, 0, top).view(np.uint8)
    kept = np.flatnonzero(step == 0)
    if kept.size:
        found = affine_codes(columns(sub[kept]), search.inverse[kept], search.origin[kept], top)
        codes[kept] = found.T
    return codes.reshape(x.shape)


def symmetric_super_codes(x: F32, d: npt.NDArray[np.float16], scales: npt.NDArray[np.int8], top: int, found: F32) -> U8:
    """The code of each element under the stored scales, plus `top` [blocks, 256].

    Args:
        x: blocks [blocks, 256].
        d: stored scale of scales [blocks].
        scales: stored scales of the sub-blocks [blocks, sub-blocks].
        top: codes run from ``-top`` to ``top - 1``.
        found: codes of the search as columns of sub-blocks; they stay where a scale is zero.
    """
    sub = x.reshape(scales.size, -1)
    step = (d.astype(np.float32)[:, None] * scales).ravel()
    codes = nearest_codes(sub, step, None, -top, top - 1)
    kept = np.flatnonzero(step == 0)
    if kept.size:
        codes[kept] = found[:, kept].T
    codes += np.int8(top)
    return codes.view(np.uint8).reshape(x.shape)
