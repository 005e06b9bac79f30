"""The lower limit of scales, and the storage of scales and zero points in an IR.

    lower limit      s = max(amax / largest, EPS)      tensors below 10,000 elements, and always int*, cb4
                     s = max(amax, EPS) / largest      larger ones: nf4, fp4, fp8, mxfp4, mxfp8, nvfp4
    EPS = 2^-23, float32's machine epsilon. NNCF computes small tensors in numpy, large ones in OpenVINO.

    float16          t = float16(s), ties to even; infinite from 65520 on; zero up to 2^-25
    float8_e8m0fnu   s = t is a power of two 2^e; stored e + 127
    float8_e4m3fn    g = max(s over the tensor), with the limit above for largest = 448 and a tensor that has as
                     many elements as there are scales
                     stored e4m3(float16(s / g)) and g; t = float16(e4m3 * g), the product in float32

Source: nncf 3.4.0, `do_float_quantization` and `_create_compression_subgraph`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.numerics.blocks import extent
from edgekit.numerics.smallfloats import float8_e4m3fn_to_float32, float8_e8m0fnu_to_float32, float32_to_float8_e4m3fn
from edgekit.precision import Precision
from edgekit.reference.openvino import _layout
from edgekit.typing import F32, U8, Array

EPS = np.float32(2.0**-23)
#: Number of elements from which NNCF computes in OpenVINO instead of numpy.
LARGE = 10_000


def above_zero(amax: F32, largest: float, size: int) -> F32:
    """Return ``amax / largest`` with the lower limit, in the order of operations for a tensor of `size` elements."""
    if size >= LARGE:
        return np.divide(np.maximum(amax, EPS), np.float32(largest))
    return np.maximum(np.divide(amax, np.float32(largest)), EPS)


def global_scale(x: Array, precision: Precision) -> F32:
    """Return the divisor of the scales of a whole tensor [rows, cols], float32 [1, 1, 1]: g for nvfp4, else 1."""
    if precision.kind != "nvfp4":
        return np.ones((1, 1, 1), np.float32)
    least, largest = extent(x)
    amax = np.maximum(largest, -least).reshape(1, 1, 1)
    largest_scale = above_zero(amax, 6.0, x.size)  # division is monotonic, so this is the largest of all quotients
    return above_zero(largest_scale, 448.0, x.size // 16)


def narrow(scale: F32, shared: F32, precision: Precision) -> Array:
    """Return float32 scales [groups, 1] in their stored type."""
    match precision.scale_dtype:
        case "float8_e8m0fnu":
            return (np.frexp(scale)[1] + 126).astype(np.uint8)
        case "float8_e4m3fn":
            ratio = (scale / shared[0]).astype(np.float16).astype(np.float32)
            return float32_to_float8_e4m3fn(ratio)
    return scale.astype(np.float16)


def carrier(precision: Precision) -> type[np.float16 | np.uint8]:
    """Return the numpy dtype of the stored scales."""
    return np.float16 if precision.scale_dtype == "float16" else np.uint8


def widen(parts: Mapping[str, Array], precision: Precision) -> F32:
    """Return the stored scales as float32 [groups, 1], by which decoding multiplies."""
    scale = parts["scale"].reshape(-1, 1)
    match precision.scale_dtype:
        case "float8_e8m0fnu":
            return float8_e8m0fnu_to_float32(scale)
        case "float8_e4m3fn":
            product = float8_e4m3fn_to_float32(scale) * parts["global_scale"].reshape(1, 1)
            scale = product.astype(np.float16)
    return np.asarray(scale, np.float32)


def zero_point_part(zero_point: U8, precision: Precision, rows: int) -> dict[str, Array]:
    """Return the part with the zero points [groups, 1]; empty if the IR has none."""
    if precision.kind in ("int3", "int2"):
        return {"zero_point": np.array(1 << (precision.bits - 1), np.int8)}
    if precision.symmetric:
        return {}
    packed = _layout.pack(zero_point.reshape(-1), precision.bits)
    return {"zero_point": _layout.in_rows(packed, rows, zero_point.size // rows, precision.bits)}


def zero_points(parts: Mapping[str, Array], precision: Precision, groups: int) -> F32 | None:
    """Return zero points as float32 [groups, 1]; None if the levels are signed."""
    if precision.symmetric:
        return None
    packed = parts["zero_point"].reshape(-1)
    return _layout.unpack(packed, precision.bits, groups).astype(np.float32)[:, None]
