"""Packing small codes into bytes. Every function is exact and has an exact inverse."""

from __future__ import annotations

import numpy as np

from edgekit.typing import U8, U64

#: Bits of a code -> the word type with one byte for each code of a packed byte, and its masks.
_WORDS = {2: "<u4", 4: "<u2"}
_MASKS = {2: 0x03030303, 4: 0x0F0F}


def pack_lsb(codes: U8, bits: int) -> U8:
    """Pack codes [..., n] of `bits` bits into one LSB-first little-endian bit stream [..., ceil(n*bits/8)].

    Code 0 takes the lowest bits of byte 0. Unused bits of the last byte are zero.
    """
    count = codes.shape[-1]
    if bits == 8:
        return np.ascontiguousarray(codes)
    if bits == 1:
        return np.packbits(codes, axis=-1, bitorder="little")
    if bits in _WORDS:
        lanes = _pad(codes, 8 // bits).view(_WORDS[bits])
        packed = lanes.copy()
        for lane in range(1, 8 // bits):  # the lowest byte collects the codes; the bits above it are dropped
            packed |= lanes >> (8 - bits) * lane
        return packed.astype(np.uint8)
    words = _squeeze(_pad(codes, 8).view("<u8"), bits).view(np.uint8).reshape(*codes.shape[:-1], -1, 8)
    stream = np.empty((*words.shape[:-1], bits), np.uint8)
    for byte in range(bits):  # twice as fast as a copy of all: numpy's inner loop runs over the words
        stream[..., byte] = words[..., byte]
    return stream.reshape(*codes.shape[:-1], -1)[..., : -(-count * bits // 8)]


def unpack_lsb(packed: U8, bits: int, count: int) -> U8:
    """Unpack bytes [..., m] to the first `count` codes [..., count]; the inverse of `pack_lsb`."""
    if bits == 8:
        return packed[..., :count]
    if bits == 1:
        return np.unpackbits(packed, axis=-1, count=count, bitorder="little")
    if bits in _WORDS:
        lanes = packed.astype(_WORDS[bits])
        codes = lanes.copy()
        for lane in range(1, 8 // bits):
            codes |= lanes << (8 - bits) * lane
        codes &= _MASKS[bits]
        return codes.view(np.uint8)[..., :count]
    stream = _pad(packed, bits)
    words = np.zeros((*packed.shape[:-1], stream.shape[-1] // bits, 8), np.uint8)
    words[..., :bits] = stream.reshape(*packed.shape[:-1], -1, bits)
    return _spread(words.view("<u8"), bits).view(np.uint8).reshape(*packed.shape[:-1], -1)[..., :count]


def _pad(values: U8, multiple: int) -> U8:
    """Return contiguous values, zeros appended to the last axis up to a multiple."""
    missing = -values.shape[-1] % multiple
    if not missing:
        return np.ascontiguousarray(values)
    return np.concatenate([values, np.zeros((*values.shape[:-1], missing), np.uint8)], axis=-1)


def _squeeze(words: U64, bits: int) -> U64:
    """Move eight codes, one in each byte of a word, to the lowest ``8 * bits`` bits of the word."""
    for lane in (
        8,
        16,
        32,
    ):  # bits of a lane; each step joins two neighbours, each `lane * bits // 8` bits full
        low = words & _every_other(lane, lane)
        high = words & ~_every_other(lane, lane)
        high >>= np.uint64(lane - lane * bits // 8)
        words = np.bitwise_or(low, high, out=low)
    return words


def _spread(words: U64, bits: int) -> U64:
    """Move eight packed codes to one in each byte of a word; the inverse of `_squeeze`."""
    for lane in (32, 16, 8):
        full = lane * bits // 8
        low = words & _every_other(lane, full)
        high = words & (_every_other(lane, full) << np.uint64(full))
        high <<= np.uint64(lane - full)
        words = np.bitwise_or(low, high, out=low)
    return words


def _every_other(lane: int, full: int) -> np.uint64:
    """Return a mask of the lowest `full` bits of every second lane of `lane` bits."""
    return np.uint64(sum(((1 << full) - 1) << start for start in range(0, 64, 2 * lane)))


__all__ = ["pack_lsb", "unpack_lsb"]
