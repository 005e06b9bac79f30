"""ggml's packing of codes in planes: plane p is stored in bits ``bits * p`` and up of each byte."""

from __future__ import annotations

import numpy as np

from edgekit.typing import U8


def split(packed: U8, bits: int) -> U8:
    """Unpack bytes [m, width] to codes [m, 8 / bits, width]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: U8 = (packed[:, None, :] >> shifts[:, None]) & np.uint8((1 << bits) - 1)
    return codes


def join(codes: U8, bits: int) -> U8:
    """Pack codes [m, planes, width] in bytes [m, width]; every code must fit in `bits`. The inverse of `split`."""
    shifts = np.arange(0, bits * codes.shape[1], bits, dtype=np.uint8)
    packed: U8 = np.bitwise_or.reduce(codes << shifts[:, None], axis=1)
    return packed
