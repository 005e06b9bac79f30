"""ONNX Runtime's conventions: one module per convention, dispatched by kind and granularity.

    matmul_nbits   int2|int4|int8-sym|asym-g<block>         B, scales, zero_points
    qdq_int4       qdq_int4-sym|asym-g<block>               codes, scale, zero_point
    int8           int8|uint8-sym|asym-channel|tensor       codes, scale, zero_point

Tested against onnxruntime 1.32.0 and onnx 1.23.2 on x86-64.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.reference.onnx import int8, matmul_nbits, qdq_int4
from edgekit.typing import F32, F64, Array

traits = Traits(
    proof="exact: onnxruntime 1.32.0",
    bound="half a step; beyond the last level the distance to it",
    source_dtypes=True,  # the scales have the dtype of the source
)


def encode(x: Array, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Encode rows [rows, cols], which are the columns of an ONNX MatMul's weight; importance is ignored."""
    with np.errstate(all="ignore"):
        parts: dict[str, Array] = _module(precision).encode(x, precision)
    return parts


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]: (code - zero point) * scale, as DequantizeLinear does."""
    with np.errstate(all="ignore"):
        values: F32 = _module(precision).decode(parts, precision, shape)
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step, or the distance to the last level if that is more, plus the effect of rounding the scale."""
    with np.errstate(all="ignore"):
        limit: F64 = _module(precision).bound(x, parts, precision)
    return limit


def _module(precision: Precision) -> ModuleType:
    if precision.kind == "qdq_int4":
        return qdq_int4
    return matmul_nbits if precision.granularity == "group" else int8


__all__ = ["bound", "decode", "encode", "traits"]
