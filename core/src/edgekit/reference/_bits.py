"""Packing small codes into bytes. Every function is exact and has an exact inverse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]


def pack_lsb(codes: U8, bits: int) -> U8:
    """Pack codes [..., n] of `bits` bits into one LSB-first little-endian bit stream [..., ceil(n*bits/8)].

    Code 0 takes the lowest bits of byte 0. Unused bits of the last byte are zero.
    """
    if bits == 8:
        return np.ascontiguousarray(codes)
    if bits in (1, 2, 4) and codes.shape[-1] % (8 // bits) == 0:
        lanes = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
        packed = lanes[..., 0].copy()
        for lane in range(1, 8 // bits):
            packed |= lanes[..., lane] << np.uint8(bits * lane)
        return packed
    planes = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    return np.packbits(planes.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def unpack_lsb(packed: U8, bits: int, count: int) -> U8:
    """The inverse of `pack_lsb`: bytes [..., m] to the first `count` codes [..., count]."""
    if bits == 8:
        return packed[..., :count]
    if bits in (1, 2, 4):
        mask = np.uint8((1 << bits) - 1)
        lanes = [(packed >> np.uint8(bits * lane)) & mask for lane in range(8 // bits)]
        return np.stack(lanes, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count]
    stream = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    planes = stream.reshape(*packed.shape[:-1], count, bits)
    return np.packbits(planes, axis=-1, bitorder="little")[..., 0]
