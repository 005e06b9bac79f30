"""The search of IQ2 and IQ3 for the scale of a sub-block whose magnitudes lie on a grid.

Code c stands for the magnitude ``scale * (2c + 1)``. A fixed list of inverse scales is tried: each element is rounded
to a code, groups that are off the grid are moved to a neighbour on it, and the scale is fitted to the result by
weighted least squares. The scale that explains most is refined once: groups are rounded again with it, and it is
fitted again.

Source: ggml 0.25.3, ``quantize_row_iq2_xxs_impl``, ``quantize_row_iq2_xs_impl``, ``quantize_row_iq2_s_impl``,
``quantize_row_iq3_xxs_impl`` and ``quantize_row_iq3_s_impl``.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import numpy as np

from edgekit.numerics.rounding import nearest_int
from edgekit.reference.ggml._grids import Grid, grid
from edgekit.reference.ggml._importance import Importance, block_power, search_weights
from edgekit.reference.ggml._layout import columns
from edgekit.reference.ggml._search import positive, total
from edgekit.typing import F32, U8, Array, Bools, Indices

SIZE = 256
_HALF = np.float32(0.5)


@attrs.frozen(eq=False)
class Search:
    """What differs between the types.

    Attributes:
        grid: name of the grid, and of the type that it was made for.
        bits: width of a code.
        top: codes run from 0 to ``top - 1``.
        distances: see `_grids.grid`.
        sub: elements of a sub-block.
        tries: scales are tried on either side of the first.
        step: between the tries, in levels.
        all_again: whether all groups of a sub-block are rounded again if one was off the grid; else only that one.
        from_positive: whether the first scale is that of ``make_qp_quants``, instead of the largest magnitude's; then
            all groups of all sub-blocks are rounded again.
    """

    grid: str
    bits: int
    top: int
    distances: int
    sub: int
    tries: int
    step: float
    all_again: bool = False
    from_positive: bool = False

    @property
    def points(self) -> Grid:
        """The grid."""
        return grid(self.grid, self.bits, self.top, self.distances)

    @property
    def steps(self) -> F32:
        """Into how many levels the largest magnitude is divided, one number a try."""
        numbers = np.arange(-self.tries, self.tries + 1, dtype=np.float32)
        return np.float32(2 * self.top - 1) + numbers * np.float32(self.step)


class Fit(NamedTuple):
    """A fit of sub-blocks.

    Attributes:
        scale: of each sub-block, not negative, [sub-blocks].
        point: of of each group, [groups, sub-blocks].
        signs: of each eight elements as bits, uint8 [n / 8, sub-blocks].
        skipped: sub-blocks that count as zero, [sub-blocks].
        lost: where ggml aborts because no point is found, [sub-blocks].
    """

    scale: F32
    point: Indices
    signs: U8
    skipped: Bools
    lost: Bools


def fit(how: Search, x: F32, weights: F32, epsilon: np.float32, even: bool) -> Fit:
    """Fit sub-blocks.

    Args:
        how: see there.
        x: elements, columns [n, sub-blocks].
        weights: of the squared errors, [n, sub-blocks].
        epsilon: sub-blocks with no magnitude as large count as zero.
        even: whether the number of negative signs of every eight is even; see `without_signs`.
    """
    magnitudes, signs = without_signs(x, weights if even else None)
    peak = magnitudes.max(axis=0)
    skipped = peak < epsilon
    scale = peak / np.float32(2 * how.top - 1)
    if how.from_positive:
        scale = positive(magnitudes, weights, how.top + 1).scale
        peak = scale * np.float32(how.top)
        skipped |= peak <= 0
    index, lost = np.zeros((len(x) // how.points.dimensions, len(peak)), np.intp), np.zeros(len(peak), np.bool_)
    work = np.flatnonzero(~skipped)
    scale[skipped], signs[:, skipped] = 0, 0
    if work.size:
        found = _search(how, *(np.take(v, work, axis=-1) for v in (magnitudes, weights, peak, scale)))
        scale[work], index[:, work], lost[work] = np.abs(found.scale), found.point, found.lost
        signs[:, work] ^= np.where(found.scale < 0, np.uint8(255), np.uint8(0))
    return Fit(scale, index, signs, skipped, lost)


class _Found(NamedTuple):
    """Scales [sub-blocks], negative if all signs have to be inverted; see `Fit`."""

    scale: F32
    point: Indices
    lost: Bools


class _Rounded(NamedTuple):
    """Groups on the grid: their levels [n, sub-blocks], points and whether they were off it [groups, sub-blocks]."""

    levels: F32
    point: Indices
    off: Bools
    lost: Bools


def _search(how: Search, x: F32, weights: F32, peak: F32, scale: F32) -> _Found:
    """Fit sub-blocks that are not zero.

    Args:
        how: see there.
        x: magnitudes, columns [n, sub-blocks]; one with an inverted sign is negative.
        weights: of the squared errors, [n, sub-blocks].
        peak: what the steps divide, [sub-blocks]; not 0.
        scale: the scale if no try is better, [sub-blocks].
    """
    roots, weighted, scale = np.sqrt(weights), weights * x, scale.copy()
    best, lost = np.zeros_like(peak), np.zeros(len(peak), np.bool_)
    groups = how.points.dimensions
    index = np.zeros((len(x) // groups, len(peak)), np.intp)
    off = np.full(index.shape, how.all_again)
    for step in how.steps:
        inverse = step / peak
        rounded = _round(how, x, roots, inverse, np.float32(1) / inverse)
        sum_qx, sum_q2 = _sums(weighted, weights, rounded.levels)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        np.copyto(scale, sum_qx / sum_q2, where=better)
        np.copyto(best, scale * sum_qx, where=better)
        np.copyto(index, rounded.point, where=better)
        np.copyto(off, rounded.off, where=better)
        lost |= rounded.lost
    again = np.flatnonzero((off.any(axis=0) | how.from_positive) & (scale > 0))
    if again.size:
        some = _Found(scale[again], index[:, again], lost[again])
        refined = _refine(how, x[:, again], weights[:, again], off[:, again], some)
        scale[again], index[:, again], lost[again] = refined
    return _Found(scale, index, lost | np.isnan(scale))


def _refine(how: Search, x: F32, weights: F32, off: Bools, first: _Found) -> _Found:
    rounded = _round(how, x, np.sqrt(weights), np.float32(1) / first.scale, first.scale)
    renewed = np.True_ if how.all_again else off
    index = np.where(renewed, rounded.point, first.point)
    sum_qx, sum_q2 = _sums(weights * x, weights, _levels(how, index))
    scale = np.where(sum_q2 > 0, sum_qx / sum_q2, first.scale)
    return _Found(scale, index, first.lost | rounded.lost)


def _round(how: Search, x: F32, roots: F32, inverse: F32, scale: F32) -> _Rounded:
    """Round magnitudes to codes, and move groups that are off the grid onto it."""
    points = how.points
    codes = np.clip(nearest_int(_HALF * (inverse * x - np.float32(1))), 0, how.top - 1)
    places = points.places(codes.reshape(-1, points.dimensions, x.shape[1]).swapaxes(0, 1))
    index = points.index[places].astype(np.intp)
    group, block = np.nonzero(index < 0)
    grouped = x.reshape(-1, points.dimensions, x.shape[1]), roots.reshape(-1, points.dimensions, x.shape[1])
    some, heavy = (np.ascontiguousarray(v[group, :, block].T) for v in grouped)
    odd = np.arange(1, 2 * how.top, 2, dtype=np.float32)
    snapped = points.snap(places[group, block], some, heavy, scale[block], odd)
    off, lost = index < 0, np.zeros(x.shape[1], np.bool_)
    index[group, block] = snapped.point
    lost[block[~snapped.found]] = True
    return _Rounded(_levels(how, index), index, off, lost)


def _levels(how: Search, index: Indices) -> F32:
    """Return the magnitudes [n, sub-blocks] of points [groups, sub-blocks], in units of the scale."""
    codes = how.points.codes[index].swapaxes(1, 2)
    levels: F32 = (2 * codes + 1).astype(np.float32).reshape(-1, index.shape[1])
    return levels


def _sums(weighted: F32, weights: F32, levels: F32) -> tuple[F32, F32]:
    return total(weighted * levels), total(weights * levels * levels)


def weights_of(x: F32, importance: Importance | None, share: int) -> F32:
    """Return the weights of squared errors [blocks, 256]: ``qw * sqrt(sigma2 + x²)``, or x² without importance.

    ``sigma2 = share * sum(x²) / 256`` over the block.
    """
    if importance is None:
        return np.square(x)
    power = np.float32(share) * block_power(x) / np.float32(SIZE)
    return search_weights(x, importance.columns, power[:, None])


def sub_blocks(v: F32, sub: int) -> F32:
    """Return blocks [blocks, 256] as columns of sub-blocks, [sub, sub-blocks]."""
    turned: F32 = columns(v.reshape(-1, sub))
    return turned


class Signed(NamedTuple):
    """Magnitudes [n, sub-blocks] and the signs of each eight of them as bits, uint8 [n / 8, sub-blocks]."""

    magnitudes: F32
    signs: U8


def without_signs(x: F32, weights: F32 | None = None) -> Signed:
    """Separate signs and magnitudes of columns [n, sub-blocks].

    With `weights` the number of negative signs of every eight is made even, as the types that store seven signs need:
    the element that weighs least, by ``weight * x²``, gets the wrong sign, which its magnitude makes good.
    """
    negative = ~(x >= 0)
    magnitudes = np.where(negative, -x, x)
    if weights is not None:
        eights = negative.reshape(-1, 8, x.shape[1])
        least = (weights * x * x).reshape(eights.shape).argmin(axis=1)
        group, block = np.nonzero(eights.sum(axis=1) % 2)
        row = 8 * group + least[group, block]
        negative[row, block] ^= True
        magnitudes[row, block] *= -1
    bits = np.packbits(negative.reshape(-1, 8, x.shape[1]), axis=1, bitorder="little")
    return Signed(magnitudes, bits[:, 0])


def scale_codes(scales: F32, d: F32, top: int) -> U8:
    """Return the codes c of scales [blocks, n], which stand for ``d * (2c + 1)``: uint8, 0 to `top`."""
    inverse = np.float32(1) / d
    codes = np.clip(nearest_int(_HALF * (inverse[:, None] * scales - np.float32(1))), 0, top)
    return codes.astype(np.uint8)


def by_block(v: Array, blocks: int) -> Array:
    """Return what sub-blocks have [k, sub-blocks] by block, [blocks, sub-blocks of a block * k]."""
    return np.ascontiguousarray(v.T).reshape(blocks, -1)
