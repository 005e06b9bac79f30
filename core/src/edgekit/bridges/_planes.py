"""ggml's way of sharing bytes: plane p of the codes lies in bits ``bits * p`` and up."""

from __future__ import annotations

import numpy as np

from edgekit.typing import U8


def split(packed: U8, bits: int) -> U8:
    """Bytes [m, width] to codes [m, 8 / bits, width]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: U8 = (packed[:, None, :] >> shifts[:, None]) & np.uint8((1 << bits) - 1)
    return codes


def join(codes: U8, bits: int) -> U8:
    """The inverse of `split`: codes [m, planes, width] to bytes [m, width]; every code has to fit in `bits`."""
    shifts = np.arange(0, bits * codes.shape[1], bits, dtype=np.uint8)
    packed: U8 = np.bitwise_or.reduce(codes << shifts[:, None], axis=1)
    return packed
