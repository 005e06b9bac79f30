"""NVFP4: 4-bit floats (e2m1), one 8-bit float (unsigned e4m3) for 16 elements; 4.5 bits a weight.

    bytes    field    meaning
    0-3      d        scales of the four sub-blocks of 16: float8_e4m3fn without a sign
    4-35     qs       4-bit codes: of each sub-block element j low, element j + 8 high; values in `_e2m1`

    d = e4m3(max|x| / 6)        value = d * e2m1

There is no scale for the whole tensor. The rounding of d looks at one bit only, so that ties go up; from 248 on it
saturates at 448, and nothing below 2**-6 is rounded up to it. A sub-block whose maximum is below 6 * 2**-10 has
scale 0: small weights are lost.
An importance matrix changes nothing.
Source: ggml 0.25.3, ``quantize_row_nvfp4_ref``, ``ggml_fp32_to_ue4m3``. Proved bit for bit against libggml-base of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference.ggml import _e2m1
from edgekit.reference.ggml._importance import Importance
from edgekit.reference.ggml._layout import Blocks, lanes, pack_planes, peak, unpack_planes
from edgekit.typing import F32, F64, U8

SIZE = 64
SUB = 16
IMPORTANCE = "unused"
LAYOUT = np.dtype([("d", "u1", 4), ("qs", "u1", 32)])
_TAME = np.float32(1 << 18)
_LARGEST = 0x7E  # 448


def _half_scales() -> F32:
    """Half the scale of each code, exact. The code of NaN stands for 0, and bit 7 is not looked at otherwise."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(1 + mantissa / 8, exponent - 7)) / 2
    value[0x7F] = 0
    scales: F32 = value.astype(np.float32)
    return scales


_HALF_SCALE = _half_scales()
#: The scale of each stored byte: [256].
SCALES = 2 * _HALF_SCALE


def encode(x: F32, importance: Importance | None = None) -> Blocks:
    """Encode blocks [blocks, 64]; importance is ignored."""
    sub = x.reshape(-1, SUB)
    largest = peak(np.abs(lanes(sub)))
    scale = to_ue4m3(largest / np.float32(6))
    half = _HALF_SCALE[scale]
    blocks = np.empty(len(x), LAYOUT)
    blocks["d"] = scale.reshape(-1, 4)
    codes = _e2m1.nearest_codes(sub, half, (largest <= _TAME * half) | (half == 0))
    blocks["qs"] = pack_planes(codes, 1, 2, 4).reshape(-1, 32)
    return blocks


def to_ue4m3(x: F32) -> U8:
    """Round x >= 0 to unsigned e4m3 as ggml does: half up, 448 from 248 on."""
    bits = x.view(np.int32)
    exponent = (bits >> 23) - (127 - 7)
    normal = (exponent << 3) + (bits >> 20 & 7) + (bits >> 19 & 1)
    subnormal = np.minimum(x * np.float32(512) + np.float32(0.5), np.float32(7)).astype(np.int32)
    return np.where(exponent > 0, np.where(normal >= 15 << 3, _LARGEST, normal), subnormal).astype(np.uint8)


def decode(blocks: Blocks) -> F32:
    """Decode to [blocks, 64]."""
    codes = unpack_planes(blocks["qs"], 4, 2, 4).reshape(-1, SUB)
    value: F32 = _e2m1.VALUES[codes] * _HALF_SCALE[blocks["d"]].reshape(-1, 1)
    return value.reshape(-1, SIZE)


def bound(x: F32, blocks: Blocks) -> F64:
    """See `_e2m1.nearest_bound`."""
    d = _HALF_SCALE[blocks["d"]].astype(np.float64).ravel()
    return _e2m1.nearest_bound(x.reshape(-1, SUB), d).reshape(x.shape)


__all__ = ["IMPORTANCE", "LAYOUT", "SCALES", "SIZE", "SUB", "bound", "decode", "encode", "to_ue4m3"]
