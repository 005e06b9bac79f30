"""8-bit weights with one scale for a row or for the tensor, as `onnxruntime.quantization` computes them.

    part           dtype               shape                            holds
    codes          int8 or uint8       [rows, cols]                     q
    scale          the source's        [rows] (channel) | [] (tensor)   s
    zero_point     int8 or uint8       as scale                         z, also if symmetric

    range          lo = min(min, 0)    hi = max(max, 0)     symmetric: hi = max(-lo, hi), lo = -hi
    scale          s = (hi - lo) / (qmax - qmin)            in float64; s = 1 and z = 0 if s is below the smallest
                                                            normal float32, or rounds to 0 in float16
    zero point     symmetric: rint((qmin + qmax) / 2)       else: rint(qmin - lo / s), s still float64
    encode         q = clip(rint(w / t) + z)                float32, half to even; t: s as stored
    decode         (q - z) * t

    qmin..qmax     int8 symmetric -127..127, asymmetric -128..127, reduced -64..64; uint8 0..255, reduced 0..127
                   (clipping always uses the whole range of the type)

In static quantization (QDQ) per-channel weights are always symmetric; asymmetric channels exist only in dynamic
quantization with ``WeightSymmetric=False``. By default int8 is symmetric and uint8 is not. A bfloat16 weight, which the
tool does not accept, is widened to float32.

Source: onnxruntime 1.32.0, `onnxruntime.quantization.quant_utils`: `compute_scale_zp`, `quantize_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.numerics.blocks import row_chunks
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.typing import F32, F64, Array

_LARGEST = float(np.finfo(np.float32).max)
#: The smallest scale that is used; a smaller one is replaced by 1.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)
# Rounding in float32 of the quotient and of the decoded product, in steps: at most 256 levels.
_SLOP = 256 * 2.0**-22
#: (kind, symmetric, reduced) -> qmin, qmax
_RANGES = {
    ("int8", True, False): (-127, 127),
    ("int8", False, False): (-128, 127),
    ("int8", True, True): (-64, 64),
    ("int8", False, True): (-64, 64),
    ("uint8", True, False): (0, 255),
    ("uint8", False, False): (0, 255),
    ("uint8", True, True): (0, 127),
    ("uint8", False, True): (0, 127),
}


def middle(precision: Precision) -> int:
    """Return the zero point of a symmetric format."""
    return int(np.rint(sum(_RANGES[precision.kind, True, precision.reduced]) / 2))


def encode(x: Array, precision: Precision) -> dict[str, Array]:
    """Encode rows [rows, cols] of float32 or float16; bfloat16 is widened first."""
    stored = np.dtype(x.dtype if x.dtype == np.float16 else np.float32)
    scale, zero_point = _fit(*_extremes(x, precision), precision, stored)
    codes = np.empty(x.shape, zero_point.dtype)
    least, largest = np.iinfo(codes.dtype).min, np.iinfo(codes.dtype).max
    for chunk in row_chunks(*x.shape):
        where = chunk if precision.rowwise else ...
        q = as_float32(x[chunk]) / as_float32(scale[where])[..., None]
        np.rint(q, out=q)
        q += zero_point[where][..., None]
        np.clip(q, np.float32(least), np.float32(largest), out=q)
        codes[chunk] = q
    return {"codes": codes, "scale": scale, "zero_point": zero_point}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]."""
    values = parts["codes"].reshape(shape).astype(np.float32)
    values -= parts["zero_point"][..., None]
    values *= as_float32(parts["scale"])[..., None]
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step, or the magnitude of the value if that is less, since 0 is always a level."""
    wide, step = as_float32(x).astype(np.float64), as_float32(parts["scale"]).astype(np.float64)[..., None]
    zero_point = parts["zero_point"].astype(np.int64)[..., None]
    limits = np.iinfo(parts["codes"].dtype)
    beyond = np.maximum(wide - (limits.max - zero_point) * step, (limits.min - zero_point) * step - wide)
    limit = np.maximum(beyond, np.minimum(step / 2, np.abs(wide))) + _SLOP * np.minimum(step, np.abs(wide)) + 2.0**-149
    return np.where(np.abs(wide) + limit > _LARGEST, np.inf, limit)  # the decoded product may overflow


def _extremes(x: Array, precision: Precision) -> tuple[Array, Array]:
    """Return minimum and maximum, float32 [rows] or []."""
    axis = 1 if precision.rowwise else None
    return as_float32(np.asarray(x.min(axis=axis))), as_float32(np.asarray(x.max(axis=axis)))


def _fit(lo: Array, hi: Array, precision: Precision, stored: np.dtype[Any]) -> tuple[Array, Array]:
    """Return the stored scale and the zero point of ranges [...]."""
    assert precision.symmetric is not None
    qmin, qmax = _RANGES[precision.kind, precision.symmetric, precision.reduced]
    lo, hi = np.minimum(lo, 0).astype(np.float64), np.maximum(hi, 0).astype(np.float64)
    if precision.symmetric:
        hi = np.maximum(-lo, hi)
        lo = -hi
    scale = (hi - lo) / (qmax - qmin)
    unusable = scale.astype(np.float16) == 0 if stored == np.float16 else scale < _LEAST_SCALE
    if precision.symmetric:
        zero_point = np.full(scale.shape, float(middle(precision)))
    else:
        zero_point = np.rint(qmin - lo / np.where(unusable, 1, scale))
    code = np.dtype(precision.kind)
    return np.where(unusable, 1, scale).astype(stored), np.where(unusable, 0, zero_point).astype(code)


__all__ = ["bound", "decode", "encode", "middle"]
