"""The packing of codes into the bytes of an IR's constant, and its inverse.

    u4, i4, nf4, f4e2m1   2 codes a byte     low nibble first
    u2                    4 codes a byte     lowest bits first
    u3                    8 codes in 3 bytes   byte 0: the low two bits of codes 0 to 3, code 0 in bits 7 and 6
                                               byte 1: the same of codes 4 to 7
                                               byte 2: the high bits, code 0 in bit 7
    u8, i8, f8e4m3        1 code a byte

A constant is one stream of codes: a row that does not fill whole bytes shares one with the next row. The last byte
(u3: the last three) is padded with zero bits.

Source: openvino 2026.4.1, `element_iterator.hpp`; compared byte by byte with constants that NNCF wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import CHUNK
from edgekit.typing import F32, U8


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of a constant of `count` codes."""
    return -(-count // 8) * 3 if bits == 3 else -(-count * bits // 8)


def chunks(shape: tuple[int, ...], bits: int) -> Iterator[tuple[slice, slice]]:
    """Yield cache-sized slices of groups [groups, size] and of the bytes of their codes; each starts at a byte."""
    count, size = shape
    step = max(1, CHUNK // size)
    if size % 8:
        step = -(-step // 8) * 8
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), slice(start * size * bits // 8, packed_bytes(stop * size, bits))


def pack(codes: U8, bits: int) -> U8:
    """Pack a stream of codes [n] into bytes."""
    return _pack_u3(codes) if bits == 3 else pack_lsb(codes, bits)


def unpack(packed: U8, bits: int, count: int) -> U8:
    """Return the first `count` codes of packed bytes, uint8 [count]; the inverse of `pack`."""
    return _unpack_u3(packed)[:count] if bits == 3 else unpack_lsb(packed, bits, count)


def look_up(packed: U8, levels: F32, bits: int, count: int) -> F32:
    """Return the levels of the first `count` codes, float32 [count]; if possible, looked up byte by byte."""
    if bits == 3:
        return levels[unpack(packed, bits, count)]
    table = levels[unpack_lsb(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits)]
    return np.take(table, packed, axis=0).reshape(-1)[:count]


def in_rows(packed: U8, rows: int, cols: int, bits: int) -> U8:
    """Return bytes as [rows, bytes of a row], or flat if rows share bytes."""
    aligned = cols * (1 if bits == 3 else bits) % 8 == 0
    return packed.reshape(rows, -1) if aligned else packed


def _pack_u3(codes: U8) -> U8:
    padded = np.zeros(-(-codes.size // 8) * 8, np.uint8)
    padded[: codes.size] = codes
    packed = np.empty((padded.size // 8, 3), np.uint8)
    # MSB first is LSB first with the four codes of a byte reversed; the bits of a code keep their order.
    packed[:, :2] = pack_lsb(padded.reshape(-1, 2, 4)[..., ::-1] & np.uint8(3), 2)[..., 0]
    packed[:, 2] = np.packbits(padded >> np.uint8(2))
    return packed.reshape(-1)


def _unpack_u3(packed: U8) -> U8:
    triples = packed.reshape(-1, 3)
    low = unpack_lsb(triples[:, :2, None], 2, 4)[..., ::-1]
    high = np.unpackbits(triples[:, 2]) << np.uint8(2)
    return low.reshape(-1) | high
