"""The super-blocks of the K types: 256 elements in sub-blocks with small integer scales.

    value = d * scale * code - dmin * minimum        affine: Q2_K, Q4_K, Q5_K
    value = d * scale * code                         symmetric: Q3_K, Q6_K

The scales (and minima) of the sub-blocks are searched in float32, then quantized with one float16 scale for the
super-block; finally each element gets the nearest code under the stored scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._codes import round_clip
from edgekit.reference.ggml._importance import Importance, block_power, search_weights
from edgekit.reference.ggml._layout import columns, lanes, spread
from edgekit.reference.ggml._search import Index, affine, affine_codes, positive, total
from edgekit.typing import F32, I8, U8

SIZE = 256


class Scales(NamedTuple):
    """The quantized scales of the sub-blocks, ``d * codes``."""

    d: F32  # [blocks], not yet rounded to float16
    codes: U8  # [blocks, sub-blocks]


def linear_scales(values: F32, top: int) -> Scales:
    """Quantize values [blocks, sub-blocks] to 0..`top` of their maximum; negative ones wrap around in uint8."""
    peak = np.fmax.reduce(values, axis=1, initial=np.float32(0))
    peak[peak == 0] = 0  # never -0
    inverse = np.where(peak > 0, np.float32(top) / peak, np.float32(0))
    return Scales(peak / np.float32(top), nearest_int(inverse[:, None] * values).astype(np.uint8))


def searched_scales(values: F32, weights: F32, top: int) -> Scales:
    """Quantize values [blocks, sub-blocks] by the search `positive`, with weights of the same shape."""
    scales = positive(columns(values), columns(weights), top)
    return Scales(scales.scale, columns(scales.codes))


class AffineFit(NamedTuple):
    """Scales and minima of the sub-blocks of super-blocks, and a function that returns the codes of the search."""

    scales: Scales
    minima: Scales
    searched: Callable[[Index], F32]


def fit_plain(x: F32, weights: F32, top: int, steps: F32, scale_top: int, absolute: bool = False) -> AffineFit:
    """Fit without an importance matrix; x and weights are columns of sub-blocks [n, sub-blocks]."""
    fit = affine(x, weights, top, steps, absolute)
    per_block = (-1, SIZE // x.shape[0])
    return AffineFit(
        linear_scales(fit.scale.reshape(per_block), scale_top),
        linear_scales(-fit.minimum.reshape(per_block), scale_top),
        lambda at: affine_codes(x, fit, top, at),
    )


def fit_weighted(x: F32, weights: F32, top: int, steps: F32, scale_top: int) -> AffineFit:
    """Fit with the weights of an importance matrix, which also weight the scales of the sub-blocks."""
    fit = affine(x, weights, top, steps)
    per_block = (-1, SIZE // x.shape[0])
    sums = total(weights).reshape(per_block)
    return AffineFit(
        searched_scales(fit.scale.reshape(per_block), sums, scale_top),
        searched_scales(-fit.minimum.reshape(per_block), sums, scale_top),
        lambda at: affine_codes(x, fit, top, at),
    )


def importance_columns(x: F32, importance: Importance, sub: int, factor: int) -> F32:
    """Return the weights ``qw * sqrt(factor * mean(x²) + x²)`` as columns of sub-blocks [sub, sub-blocks].

    Args:
        x: blocks [blocks, 256].
        importance: the importance qw of the same blocks.
        sub: number of elements in a sub-block.
        factor: 1 or 2, the factor of the mean square over the super-block.
    """
    power = np.float32(factor) * block_power(x) / np.float32(SIZE)
    return columns(search_weights(x, importance.columns, power[:, None]).reshape(-1, sub))


def super_codes(x: F32, step: F32, offset: F32 | None, low: int, high: int, searched: Callable[[Index], F32]) -> U8:
    """Return the codes under the stored scales, ``clip(nearest_int((x + offset) / step), low, high) - low``, in lanes.

    Args:
        x: blocks [blocks, 256].
        step: stored scale of each sub-block times the super-block's, [blocks, sub-blocks].
        offset: stored minimum of each sub-block, likewise; None if the type has none.
        low: the smallest code.
        high: the largest code.
        searched: returns the codes of the search for given sub-blocks, as columns; used where a scale is zero.
    """
    codes = _nearest(x, step, offset, low, high)
    unchanged = np.flatnonzero(step == 0)
    if unchanged.size:
        _overwrite(codes, unchanged, searched(unchanged))
    codes -= np.int8(low)
    return codes.view(np.uint8).reshape(-1, 4 * len(x))


def _nearest(x: F32, step: F32, offset: F32 | None, low: int, high: int) -> I8:
    """Return ``clip(nearest_int((x + offset) / step), low, high)`` in lanes [sub-blocks, n / 4, 4 * blocks]."""
    v = lanes(x).reshape(step.shape[1], -1, 4 * len(x))
    if offset is not None:
        v += spread(offset.T)[:, None]
    v /= spread(step.T)[:, None]
    return round_clip(v, low, high).astype(np.int8)


def _overwrite(codes: I8, at: Index, values: F32) -> None:
    """Overwrite the codes of the sub-blocks with indices `at` [k] by columns [n, k]."""
    subs, rows, _ = codes.shape
    block, sub = np.divmod(at, subs)
    codes.reshape(subs, rows, -1, 4)[sub, :, block] = values.T.reshape(-1, rows, 4)
