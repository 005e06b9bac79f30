"""TQ1_0: ternary codes, five to a byte, one float16 scale for 256 elements; 1.6875 bits a weight.

    bytes    field    meaning
    0-31     qs       elements j, j + 32, ..., j + 128 of the first 160
    32-47             elements j, j + 16, ..., j + 64 of the next 80
    48-51    qh       elements j, j + 4, ..., j + 12 of the last 16, and a zero
    52-53    d        float16 scale

    d = max|x|        q = roundf(x * (1 / d)) + 1        value = (q - 1) * d
    byte = ceil(256 / 243 * (81 q0 + 27 q1 + 9 q2 + 3 q3 + q4)), so that the top digit of ``byte * 3**n mod 256``
    in base 3 is q_n

Made for weights that are ternary already. The codes are chosen before d is rounded to float16. An importance
matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_tq1_0_ref``. Proved bit for bit against libggml-base of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml._bounds import grid_bound, half_ulp
from edgekit.reference.ggml._codes import ternary
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, from_lanes
from edgekit.typing import F32, F64, I8, U8

SIZE = 256
IMPORTANCE = "unused"
LAYOUT = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])
_POWERS = np.array([81, 27, 9, 3, 1], np.uint8)
#: The byte of each number of five ternary digits.
_BYTES = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)
#: (first element, bytes, digits) of the three runs of bytes.
_RUNS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))
_FIRST_BYTES = (0, 32, 48)


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 256]; importance is ignored."""
    d, turned = ternary(x)
    codes = from_lanes(turned)
    blocks = np.empty(len(x), LAYOUT)
    blocks["qs"], blocks["qh"] = pack(codes)
    blocks["d"] = d
    return blocks


def pack(codes: U8) -> tuple[U8, U8]:
    """Codes 0, 1, 2 [blocks, 256] to the fields qs [blocks, 48] and qh [blocks, 4]."""
    first, second, last = (_pack(codes, *run) for run in _RUNS)
    return np.concatenate([first, second], axis=1), last


def _pack(codes: U8, start: int, width: int, digits: int) -> U8:
    number = np.zeros((len(codes), width), np.uint8)
    for n in range(digits):
        number += codes[:, start + n * width : start + (n + 1) * width] * _POWERS[n]
    return _BYTES[number]


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 256]."""
    packed = np.concatenate([blocks["qs"], blocks["qh"]], axis=1)
    codes = np.empty((len(blocks), SIZE), np.int8)
    for n in range(len(_POWERS)):
        digit = _digit(packed, n)
        for first, (start, width, digits) in zip(_FIRST_BYTES, _RUNS, strict=True):
            if n < digits:
                at = start + n * width
                codes[:, at : at + width] = digit[:, first : first + width]
    d: F32 = blocks["d"].astype(np.float32)
    return codes * d[:, None]


def _digit(packed: U8, n: int) -> I8:
    """Digit n, the highest being 0, less 1: ``(rest * 3 >> 8) - 1``."""
    rest = packed * np.uint8(3**n)
    return (rest > 85).view(np.int8) + (rest > 170).view(np.int8) - np.int8(1)


def bound(x: F32, blocks: Blocks) -> F64:
    """Half a step, and half a unit in the last place of the stored scale."""
    return grid_bound(x, blocks["d"].astype(np.float64), 0.0, -1, 1, drift=half_ulp(blocks["d"]))


__all__ = ["IMPORTANCE", "LAYOUT", "SIZE", "bound", "decode", "encode", "pack"]
