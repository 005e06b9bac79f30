"""How blocks lie in memory while they are worked on, and how codes become bytes.

numpy is fast along long contiguous axes and slow along short ones, and a block is short. So blocks [blocks, n]
are turned: as *columns* [n, blocks], where a reduction over axis 0 is the sequential float32 sum that ggml
computes; or as *lanes* [n / 4, 4 * blocks], four elements at a time, which turn four times faster and serve
wherever the order within a block does not matter (element by element, maxima).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
#: Blocks as they lie in a file: a structured array [blocks] of a type's ``LAYOUT``.
Blocks = npt.NDArray[np.void]

_LANE = 4


def columns(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Blocks [blocks, n] as columns [n, blocks], contiguous; its own inverse."""
    return np.ascontiguousarray(x.T)


def lanes(x: F32) -> F32:
    """Blocks [blocks, n] as lanes [n / 4, 4 * blocks]: row j holds elements 4j to 4j + 3 of every block."""
    units = np.ascontiguousarray(x).view(np.complex128)  # 16 bytes, moved as one
    return np.ascontiguousarray(units.T).view(np.float32)


def from_lanes(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Codes of one byte in lanes [n / 4, 4 * blocks] as blocks [blocks, n], contiguous."""
    return np.ascontiguousarray(codes.view(np.uint32).T).view(codes.dtype)


def spread(per_block: F32) -> F32:
    """One value a block [blocks], repeated for the four lanes [4 * blocks]."""
    return np.repeat(per_block, _LANE)


def peak(magnitudes: F32) -> F32:
    """The largest of each block [blocks], from lanes."""
    return _fold(np.maximum, magnitudes)


def trough(values: F32) -> F32:
    """The smallest of each block [blocks], from lanes."""
    return _fold(np.minimum, values)


def _fold(extreme: np.ufunc, values: F32) -> F32:
    lane = extreme.reduce(values, axis=0)
    first = extreme(lane[0::_LANE], lane[1::_LANE])
    return cast(F32, extreme(extreme(lane[2::_LANE], lane[3::_LANE]), first))


def pack_planes(codes: U8, bits: int) -> U8:
    """Planes of codes [m, planes, width] as bytes [m, width]: plane p lies in bits ``bits * p`` and up.

    Works on eight codes at a time; every code has to fit in `bits`.
    """
    words = np.ascontiguousarray(codes).view(np.uint64)
    packed = words[:, 0].copy()
    for word in range(packed.shape[1]):
        for plane in range(1, words.shape[1]):
            packed[:, word] |= words[:, plane, word] << np.uint64(bits * plane)
    return packed.view(np.uint8)


def unpack_planes(packed: U8, bits: int) -> U8:
    """The inverse of `pack_planes`: bytes [m, width] to codes [m, 8 / bits, width]."""
    words = np.ascontiguousarray(packed).view(np.uint64)
    mask = np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    planes = np.empty((words.shape[0], 8 // bits, words.shape[1]), np.uint64)
    for plane in range(8 // bits):
        planes[:, plane] = (words >> np.uint64(bits * plane)) & mask
    return planes.view(np.uint8)
