"""Transposed layouts of blocks for fast numpy operations, and the packing of codes into bytes.

numpy is fast along long contiguous axes and slow along short ones, and a block is short. So blocks [blocks, n] are
transposed: to *columns* [n, blocks], where a reduction over axis 0 is the sequential float32 sum that ggml computes;
or to *lanes* [n / 4, 4 * blocks], with groups of four elements, which is four times faster to transpose and suffices
if the order within a block does not matter (elementwise operations, maxima).
"""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from edgekit.typing import F32, I8, U8, U32, Array

#: Blocks as stored in a file: a structured array [blocks] with a type's ``LAYOUT``.
Blocks = npt.NDArray[np.void]
Codes = TypeVar("Codes", U8, I8)

_LANE = 4


def columns(x: Array) -> Array:
    """Return blocks [blocks, n] as columns [n, blocks], a contiguous copy; the function is its own inverse."""
    return x.T.copy(order="C")


def lanes(x: F32) -> F32:
    """Return blocks [blocks, n] as lanes [n / 4, 4 * blocks]: row j holds elements 4j to 4j + 3 of every block."""
    units = np.ascontiguousarray(x).view(np.complex128)  # 16 bytes, moved as one
    return columns(units).view(np.float32)


def from_lanes(codes: Codes) -> Codes:
    """Return one-byte codes in lanes [n / 4, 4 * blocks] as contiguous blocks [blocks, n]."""
    return columns(codes.view(np.uint32)).view(codes.dtype)


def to_lanes(codes: Codes) -> Codes:
    """Return one-byte codes of blocks [blocks, n] as lanes; the inverse of `from_lanes`."""
    return columns(np.ascontiguousarray(codes).view(np.uint32)).view(codes.dtype)


def spread(per_block: F32) -> F32:
    """Return one value per block [..., blocks] repeated for its four lanes, [..., 4 * blocks]."""
    return np.repeat(per_block, _LANE, axis=-1)


def peak(magnitudes: F32) -> F32:
    """Return the largest value of each block [blocks], from lanes."""
    return _fold(np.maximum, magnitudes)


def trough(values: F32) -> F32:
    """Return the smallest value of each block [blocks], from lanes."""
    return _fold(np.minimum, values)


def _fold(extreme: np.ufunc, values: F32) -> F32:
    lane = extreme.reduce(values, axis=0)
    first = extreme(lane[0::_LANE], lane[1::_LANE])
    return cast(F32, extreme(extreme(lane[2::_LANE], lane[3::_LANE]), first))


def pack_planes(codes: U8, groups: int, planes: int, bits: int, first: int = 0) -> U8:
    """Pack bits `first` to ``first + bits - 1`` of codes in lanes [n / 4, 4 * blocks] to bytes [blocks, n / planes].

    A block's codes are divided into `groups`, and each group into `planes` of equal length. The planes of a group share
    its bytes: plane p takes the bits from ``bits * p`` on. Four codes are packed at a time.
    """
    words = codes.view(np.uint32)
    cut = words.reshape(groups, planes, -1, words.shape[1])
    mask = np.uint32(0x01010101 * ((1 << bits) - 1))
    packed = (cut[:, 0] >> np.uint32(first)) & mask
    for plane in range(1, planes):
        packed |= _shifted(cut[:, plane], bits * plane - first) & (mask << np.uint32(bits * plane))
    return from_lanes(packed.reshape(-1, words.shape[1]).view(np.uint8))


def _shifted(words: U32, bits: int) -> U32:
    return words << np.uint32(bits) if bits >= 0 else words >> np.uint32(-bits)


def unpack_planes(packed: U8, groups: int, planes: int, bits: int, first: int = 0) -> U8:
    """Unpack bytes [blocks, n / planes] to codes [blocks, n]: the inverse of `pack_planes`, but to blocks."""
    words = np.ascontiguousarray(packed).view(np.uint64).reshape(len(packed), groups, -1)
    mask = np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    cut = np.empty((len(packed), groups, planes, words.shape[2]), np.uint64)
    for plane in range(planes):
        cut[:, :, plane] = (words >> np.uint64(bits * plane) & mask) << np.uint64(first)
    return cut.view(np.uint8).reshape(len(packed), -1)
