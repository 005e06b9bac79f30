"""The encoders of Q4_0, Q4_1, Q5_0 and Q5_1: blocks of 32 with one scale, without or with a minimum."""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._bounds import grid_bound, half_ulp
from edgekit.reference.ggml._codes import first_minimum, reciprocal, signed_peak, truncate
from edgekit.reference.ggml._importance import Importance, search_weights
from edgekit.reference.ggml._layout import columns, from_lanes, lanes, peak, spread, to_lanes, trough
from edgekit.reference.ggml._search import affine, affine_codes, affine_steps, symmetric, symmetric_codes
from edgekit.typing import F16, F32, F64, U8, Bools

SIZE = 32
_REACH = 0.9  # largest change of the number of steps in the searches


def encode_symmetric(x: F32, top: int) -> tuple[F32, U8]:
    """Return scales [blocks] and codes in lanes, from 0 to ``2 * top - 1``."""
    v = lanes(x)
    d = signed_peak(x, peak(v), trough(v)) / np.float32(-top)
    v *= spread(reciprocal(d))
    v += np.float32(top + 0.5)
    return d, _at_most(truncate(v, np.uint8), 2 * top - 1)


def encode_symmetric_weighted(x: F32, top: int, importance: Importance) -> tuple[F32, U8]:
    """Encode by searching for the scale that minimizes the weighted squared error."""
    turned, weights = columns(x), _weights(x, importance)
    fit = symmetric(turned, weights, top)
    codes = symmetric_codes(turned, fit, top) + np.float32(top)
    return fit.scale, to_lanes(columns(codes.astype(np.uint8)))


def encode_affine(x: F32, top: int) -> tuple[F32, F32, U8]:
    """Return scales [blocks], minima [blocks] and codes in lanes, from 0 to `top`."""
    v = lanes(x)
    minimum = first_minimum(x, trough(v))
    d = (peak(v) - minimum) / np.float32(top) + np.float32(0)  # the difference of zeros of either sign is +0
    v -= spread(minimum)
    v *= spread(reciprocal(d))
    v += np.float32(0.5)
    return d, minimum, _at_most(truncate(v, np.uint8), top)


def encode_affine_weighted(x: F32, top: int, importance: Importance) -> tuple[F32, F32, U8]:
    """Encode by searching for the scale that minimizes the weighted squared error."""
    turned, weights = columns(x), _weights(x, importance)
    fit = affine(turned, weights, top, affine_steps(-0.9, 0.05, 36, top))
    codes = affine_codes(turned, fit, top)
    return fit.scale, fit.minimum, to_lanes(columns(codes.astype(np.uint8)))


def _weights(x: F32, importance: Importance) -> F32:
    return columns(search_weights(x, importance.columns, importance.row_power[:, None]))


def _at_most(codes: U8, top: int) -> U8:
    """Return ``min(top, code)`` for codes up to ``top + 1``, a power of two; four codes at a time."""
    words = codes.view(np.uint32)
    words -= words >> np.uint32(top.bit_length()) & np.uint32(0x01010101)
    return codes


def high_bits(codes: U8) -> U8:
    """Return the fifth bits of codes in lanes as bytes [blocks, 4], with element 0 in the lowest bit."""
    return np.packbits(from_lanes(codes) > 15, axis=-1, bitorder="little")


def symmetric_bound(x: F32, stored: F16, plain: Bools, top: int) -> F64:
    """Return a bound of the error of codes -top to ``top - 1`` under the stored scale [blocks].

    Without importance (`plain`) the code is the nearest under the step ``max / -top``, which is rounded to float16
    afterwards. The bound is half a step, plus half a unit in the last place of the scale for each step.

    With importance, codes c are chosen with a step ``s = max / -(top + t)``, t from -0.9 to 0.9, and the scale d is
    then fitted to them: ``|x - c d| <= |x - c s| + |c| |s - d|``, where ``|c| <= |x / s| + 1/2``. That is largest at
    an end of the range of t.
    """
    d = stored.astype(np.float64)
    bound = grid_bound(x, d, 0.0, -top, top - 1, drift=half_ulp(stored))
    searched = np.flatnonzero(~plain)
    peak = signed_peak(x[searched], x[searched].max(axis=1), x[searched].min(axis=1)).astype(np.float64)
    ends = [_fitted_bound(x[searched], -peak / (top + t), d[searched], top) for t in (-_REACH, _REACH)]
    bound[searched] = np.maximum(*ends)
    return bound


def _fitted_bound(x: F32, step: F64, d: F64, top: int) -> F64:
    share = np.divide(d, step, out=np.zeros_like(d), where=step != 0)
    misfit: F64 = np.abs(x) * np.abs(1 - share)[:, None] + np.abs(step - d)[:, None] / 2
    return grid_bound(x, step, 0.0, -top, top - 1) + misfit


def affine_bound(x: F32, stored: F16, minimum: F16, plain: Bools, top: int) -> F64:
    """Return a bound of the error of codes 0 to `top` under the stored scale and minimum [blocks].

    Without importance (`plain`) the code is the nearest under the step ``(max - min) / top`` and the minimum, which are
    rounded to float16 afterwards. The bound is half a step, plus half a unit in the last place of the scale for each
    step, plus half a unit of the minimum.

    With importance only the range of the grid is a bound: the search chooses the codes with an origin that is not
    stored, and an element of weight 0 may have any code.
    """
    d, m = stored.astype(np.float64), minimum.astype(np.float64)
    bound = grid_bound(x, d, m, 0, top, drift=half_ulp(stored)) + 2 * half_ulp(minimum)[:, None]
    searched = np.flatnonzero(~plain)
    ends = m[searched, None], (m + top * d)[searched, None]
    bound[searched] += np.maximum(*(np.abs(x[searched] - end) for end in ends))
    return bound
