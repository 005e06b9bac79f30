"""The rounding functions of the frameworks.

They differ on ties and at the ends of the range.
"""

from __future__ import annotations

import numpy as np

from edgekit.typing import F32, I32

_MAGIC = np.float32(12582912.0)  # 1.5 * 2**23: adding it leaves the integer in the low mantissa bits


def half_even(x: F32) -> F32:
    """Round to the nearest integer, ties to even (``rint``): MLX, OpenVINO, NNCF."""
    return np.rint(x)


def half_away(x: F32) -> F32:
    """Round to the nearest integer, ties away from zero, as C's ``roundf`` does: ggml, ONNX Runtime.

    The constant is the largest float32 below one half: adding 0.5 itself would round 0.49999997 up to 1.
    """
    return np.trunc(x + np.copysign(np.float32(0.49999997), x))


def nearest_int(x: F32) -> I32:
    """Round as ggml's ``nearest_int``: ties to even, with the same wrap-around for values beyond 2**22."""
    bits = (x + _MAGIC).view(np.int32)
    return (bits & 0x007FFFFF) - 0x00400000


__all__ = ["half_away", "half_even", "nearest_int"]
