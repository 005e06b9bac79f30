"""Scales and signs in the blocks of IQ2 and IQ3."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgekit.reference.ggml._grid_search import Fit, scale_codes
from edgekit.reference.ggml._layout import Blocks
from edgekit.typing import F16, F32, F64, U8, U32, Bools

#: The magnitudes of IQ2 by code.
MAGNITUDES = np.array([8, 25, 43], np.float32)
_SEVEN = np.arange(128, dtype=np.uint8)
#: Seven signs as bits, and the eighth that makes the number of minuses even.
PARITY: U8 = _SEVEN | (np.unpackbits(_SEVEN[:, None], axis=1).sum(axis=1, dtype=np.uint8) & np.uint8(1)) << np.uint8(7)
_TOP = 15


class Finished(NamedTuple):
    """The scales of blocks.

    Attributes:
        d: scale of the scales, infinite where the search found none, [blocks].
        scales: of the sub-blocks, uint8 [blocks, sub-blocks].
        skipped: sub-blocks that count as zero, [blocks, sub-blocks].
        zero: blocks in which all scales are zero, [blocks].
    """

    d: F16
    scales: U8
    skipped: Bools
    zero: Bools

    def without_zeros(self, blocks: Blocks) -> Blocks:
        """Return the blocks with all bytes of those that are zero cleared."""
        blocks[self.zero] = np.zeros((), blocks.dtype)
        return blocks


def finished(fit: Fit, blocks: int, fudge: np.float32 | None = None) -> Finished:
    """Return the scales of so many blocks; `fudge` is a factor of the stored d."""
    scales = fit.scale.reshape(blocks, -1)
    largest = scales.max(axis=1)
    d = largest / np.float32(2 * _TOP + 1)
    zero = largest == 0
    codes = np.where(zero[:, None], np.uint8(0), scale_codes(scales, d, _TOP))
    stored = np.where(zero, np.float32(0), d if fudge is None else d * fudge)
    stored[fit.lost.reshape(blocks, -1).any(axis=1)] = np.inf
    return Finished(stored.astype(np.float16), codes, fit.skipped.reshape(blocks, -1), zero)


def seven_signs(signs: U8) -> U32:
    """Return four signs bytes [4, sub-blocks] as four times seven bits of a word, [sub-blocks]."""
    words = np.zeros(signs.shape[1], np.uint32)
    for k, eight in enumerate(signs & np.uint8(127)):
        words |= eight.astype(np.uint32) << np.uint32(7 * k)
    return words


def with_parity(words: U32) -> U8:
    """Return the signs in words [...] as bits of bytes, [..., 4]; the inverse of `seven_signs`."""
    sevens = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127)
    signs: U8 = PARITY[sevens]
    return signs


def signed(values: F32, signs: U8) -> F32:
    """Return values with their signs; `signs` are bits, a byte for every eight values."""
    negative = np.unpackbits(np.ascontiguousarray(signs).reshape(-1), bitorder="little").view(np.bool_)
    return np.where(negative.reshape(values.shape), -values, values)


def farthest(x: F32, step: F32, top: float) -> F64:
    """Return the distance from x [blocks, n] to the farthest value of magnitude ``step * top`` or less.

    The search weighs errors against each other, so that an element's own error is not bounded by a level's width.
    `step` is [blocks, sub-blocks].
    """
    largest = np.abs(step.astype(np.float64)) * top * (1 + 2.0**-20)
    return np.abs(x.astype(np.float64)) + np.repeat(largest, x.shape[1] // step.shape[1], axis=1)
