"""F32, F16, BF16: rounding to nearest, ties to even.

    value = T(x)            one part, ``values`` [rows, cols]

F16 is IEEE binary16 (numpy float16); BF16 is float32 cut to 8 exponent and 7 mantissa bits, kept as uint16
bit patterns. Source: IEEE 754-2019; Intel BFLOAT16 numerics definition 1.0 (without its flush of subnormals).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.numerics.smallfloats import bfloat16_to_float32, float32_to_bfloat16
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.typing import F32, F64, Array

# Half a unit in the last place: relative to normal numbers, absolute among subnormals.
_RELATIVE = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
_ABSOLUTE = {"F32": 0.0, "F16": 2.0**-25, "BF16": 2.0**-134}


def encode(x: F32, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Round each element; importance is ignored. F16 overflows to infinity above 65,519.99."""
    if precision.kind == "BF16":
        return {"values": float32_to_bfloat16(x)}
    with np.errstate(over="ignore", under="ignore"):
        return {"values": x.astype({"F32": np.float32, "F16": np.float16}[precision.kind])}


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Widen to float32, exactly."""
    values = parts["values"].reshape(shape)
    return bfloat16_to_float32(values) if precision.kind == "BF16" else values.astype(np.float32)


def bound(x: F32, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a unit in the last place of each element."""
    magnitude = np.abs(x.astype(np.float64))
    return np.maximum(magnitude * _RELATIVE[precision.kind], _ABSOLUTE[precision.kind])


def overflowed(parts: Mapping[str, Array], precision: Precision) -> str:
    """Return ``"values"`` if a value became infinite: above 65,519.99 in F16, beyond the largest bfloat16 in BF16."""
    values = bfloat16_to_float32(parts["values"]) if precision.kind == "BF16" else parts["values"]
    return "" if np.isfinite(values).all() else "values"


traits = Traits(
    proof="exact: IEEE rounding to nearest, checked against numpy and ml_dtypes",
    bound="half a unit in the last place",
    overflowed=overflowed,
)

__all__ = ["bound", "decode", "encode", "overflowed", "traits"]
