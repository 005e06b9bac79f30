"""MLX: the arithmetic of `mx.quantize` and `mx.dequantize` on the CPU backend.

    part           dtype                    shape                    holds
    weight         uint32                   [rows, cols * b / 32]    b-bit codes, one LSB-first stream a row
    scales         affine: source's type    [rows, cols / group]     s
                   mxfp4, mxfp8: uint8                               e + 127         (float8_e8m0fnu)
                   nvfp4: uint8                                      S               (float8_e4m3fn)
    biases         source's type            [rows, cols / group]     affine: the end of the range that codes start from
    global_scale   float32                  []                       nvfp4-tensor: G, the largest |w| of the tensor

T is the source's type: float32, float16 or bfloat16. All arithmetic is float32, every operation rounded
once, except where T( ) rounds to the source's type; rint is half to even; / is a true division.

    affine    n = 2^b - 1       s = max((max - min) / n, 1e-7)        edge = max, s = -s    where |min| <= |max|
                                                                      edge = min            where |min| >  |max|
              q0 = rint(edge / s)       bias = edge, s = edge / q0    where q0 != 0         otherwise bias = 0
              q = clip(rint((w - bias) / s), 0, n)    stored scale T(s), T(bias): the codes see s not yet rounded
              b = 1: s = max(max - min, 1e-7), bias = min
              decode  T(T(q * s) + bias)
    mxfp4     e = ceil(log2(T(max|w| / 6))), 0 for an empty scale     q = e2m1(w / 2^e)             decode  q * 2^e
    mxfp8     e = ceil(log2(T(max|w| / 448))), likewise               q = e4m3(w / 2^e)             decode  q * 2^e
    nvfp4     S = e4m3(T(max|w| / 6) * E)                             q = e2m1(T(w / S) * E)        decode  q * (S * D)
              E = 2688 / G and D = G / 2688 with a global scale, else both 1

e2m1 rounds to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6, ties to the smaller magnitude, and has no -0; e4m3
rounds half to even, saturates at 448 and keeps -0. Decoded values are those of `mx.dequantize` in the scales'
type for affine and with ``dtype=float32`` for the others (whose default, bfloat16, holds the same values).

Edge cases of MLX 0.32.4, reproduced here because the bytes must be equal:
  * A constant group beyond 3.4e31 has s = 0: its codes are 0, its bias is exact.
  * e is stored modulo 256. max|w| / 6 below 2^-127 (for mxfp8 / 448) therefore decodes to huge numbers, and to
    NaN where e = -128; `overflowed` finds the latter.
  * nvfp4's S saturates at 448 and vanishes below 2^-10: values beyond 2688 are cut off, groups below 0.0058
    become 0. nvfp4-tensor has neither. Beyond 2^25 * 448 even the cut off is lost: codes fall to 0.
  * nvfp4 of an odd number of groups in all is refused by MLX, whose CPU backend reshapes to 32; here it is encoded.
  * With float16, s * q overflows to infinity in groups that span more than 65504.
  * Infinity: affine codes are 0 beside a scale that is NaN (b = 1: infinite); nvfp4 codes are 0 and S = 448.
    mxfp4 and mxfp8 convert an infinite exponent to an integer, which C++ leaves undefined: no contract.

Source: MLX 0.32.4, CPU backend: `fast::Quantize` (affine) and the composite operations behind `fp_quantize` and
`fp_dequantize`. 0.32.2 rounds log2 to the nearest integer instead of up, and has no 1 bit. The Metal kernels differ
(read, not run: they round q0 and the codes half away from zero, start max at 0, multiply by 1 / S, keep -0).
Proved on x86-64 Linux, mlx-cpu 0.32.4, by ``tests/oracles/test_mlx_exact.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.numerics.blocks import groups, row_chunks
from edgekit.numerics.smallfloats import (
    E2M1,
    E4M3,
    as_float32,
    bfloat16_to_float32,
    float32_to_bfloat16,
    float32_to_float8_e4m3fn,
    is_bfloat16,
    to_float32,
)
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.typing import F32, F64, I32, U8, Array

_EPS = np.float32(1e-7)
#: Largest magnitude of an element.
_LARGEST = {"mxfp4": np.float32(6), "mxfp8": np.float32(448), "nvfp4": np.float32(6)}
_SCALE_RANGE = np.float32(448 * 6)
_E2M1_SIGNED = np.concatenate([E2M1, -E2M1])
_E2M1_MIDPOINTS = (E2M1[:-1] + E2M1[1:]) / 2
#: Below this |w / scale| the distances to the elements of e2m1 are exact enough for their order to be kept.
_FAR = np.float32(2**25)
_E8M0_NAN = 255


def encode(x: Array, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Encode [rows, cols] of float32, float16 or bfloat16 (ml_dtypes); importance is ignored."""
    with np.errstate(all="ignore"):
        if precision.kind.startswith("int"):
            return _encode_affine(x, precision)
        if precision.kind == "nvfp4":
            return _encode_nvfp4(x, precision)
        return _encode_mx(x, precision)


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]; affine values are rounded to the type of the scales, as MLX rounds them.

    bfloat16 scales may come as ml_dtypes arrays or as uint16 bit patterns.
    """
    values = np.empty(shape, np.float32)
    with np.errstate(all="ignore"):
        for chunk in row_chunks(*shape):
            packed = np.ascontiguousarray(parts["weight"][chunk], "<u4").view(np.uint8)
            codes = groups(unpack_lsb(packed, precision.bits, shape[1]), _size(precision))
            target = groups(values[chunk], _size(precision))
            if "biases" in parts:
                _line(codes, parts["scales"][chunk], parts["biases"][chunk], target)
            else:
                elements = E4M3 if precision.kind == "mxfp8" else _E2M1_SIGNED
                np.multiply(elements[codes], float_scale(parts, precision, chunk)[..., None], out=target)
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half a step, or the distance to the last level if larger, plus the roundings to the source's type.

    It is infinite if a decoded value may overflow, as in `mx.dequantize`, and huge if MLX's exponent wrapped.
    """
    with np.errstate(all="ignore"):
        wide = groups(to_float32(x).astype(np.float64), _size(precision))
        if precision.kind.startswith("int"):
            limit = _affine_bound(wide, parts, precision)
        elif precision.kind == "nvfp4":
            limit = _nvfp4_bound(wide, x.dtype, parts, precision)
        else:
            limit = _mx_bound(wide, x.dtype, parts, precision)
    return limit.reshape(x.shape)


def overflowed(parts: Mapping[str, Array], precision: Precision) -> str:
    """Return the part with a scale that is not finite; empty if there is none."""
    if precision.kind in ("mxfp4", "mxfp8"):
        return "scales" if (parts["scales"] == _E8M0_NAN).any() else ""
    floats = [name for name in ("scales", "biases", "global_scale") if name in parts and parts[name].dtype != np.uint8]
    return next((name for name in floats if not np.isfinite(_widen(parts[name])).all()), "")


# --- affine -----------------------------------------------------------------------------------------------


def _encode_affine(x: Array, precision: Precision) -> dict[str, Array]:
    codes, scales = _empty(x, precision, x.dtype)
    biases = np.empty_like(scales)
    for chunk in row_chunks(*x.shape):
        blocks = groups(_widen(x[chunk]), _size(precision))
        scale, bias = _fit(blocks, precision.bits)
        q = _quantize(blocks, scale, bias, precision.bits)
        codes[chunk] = pack_lsb(q.reshape(x[chunk].shape), precision.bits)
        scales[chunk], biases[chunk] = _narrow(scale, x.dtype), _narrow(bias, x.dtype)
    return {"weight": _words(codes), "scales": scales, "biases": biases}


def _fit(blocks: F32, bits: int) -> tuple[F32, F32]:
    """Scale and bias [rows, groups] of blocks [rows, groups, size], neither rounded yet."""
    low, high = _extremes(blocks)
    if bits == 1:
        return np.maximum(high - low, _EPS), _first_zero(blocks, low)
    at_bottom = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32(2**bits - 1), _EPS)
    scale = np.where(at_bottom, scale, -scale)
    edge = np.where(at_bottom, low, high)
    q0 = np.rint(edge / scale)
    return np.where(q0 != 0, edge / q0, scale), np.where(q0 != 0, edge, np.float32(0))


def _first_zero(blocks: F32, low: F32) -> F32:
    """`low` with the sign of its group's first zero where it is zero: numpy's minimum may be either zero."""
    zero = np.nonzero(low == 0)
    first = (blocks[zero] == 0).argmax(axis=1)
    signed = low.copy()
    signed[zero] = blocks[(*zero, first)]
    return signed


def _quantize(blocks: F32, scale: F32, bias: F32, bits: int) -> U8:
    """Codes [rows, groups, size]."""
    q = blocks - bias[..., None]
    q /= scale[..., None]
    np.rint(q, out=q)
    np.clip(q, 0, 2**bits - 1, out=q)
    q[~np.isfinite(scale) | (scale == 0)] = 0  # 0 / 0 is NaN, whose code is 0
    return q.astype(np.uint8)


def _line(codes: U8, scales: Array, biases: Array, out: F32) -> None:
    """Decode [rows, groups, size]: T(T(q * s) + bias)."""
    out[...] = codes
    out *= _widen(scales)[..., None]
    _round_to(_dtype_name(scales), out)
    out += _widen(biases)[..., None]
    _round_to(_dtype_name(scales), out)


def _affine_bound(wide: F64, parts: Mapping[str, Array], precision: Precision) -> F64:
    unit, tiny, largest = _ROUNDING[_dtype_name(parts["scales"])]
    scale, bias = (_widen(parts[name]).astype(np.float64)[..., None] for name in ("scales", "biases"))
    scale = np.where(scale == 0, 1, scale)  # a huge constant, which its bias alone decodes to
    step, position = np.abs(scale), (wide - bias) / scale
    level = np.clip(position, 0, 2**precision.bits - 1)
    # The codes were made with the scale before it was rounded to the type that stores it.
    rounded = np.maximum(unit, tiny / step)
    drift = np.abs(position) * (rounded / (1 - rounded) + 2.0**-22)
    error = step * (0.5 + np.abs(position - level) + drift)
    product = np.abs(wide - bias) + error
    limit = error + 2 * unit * (product + np.abs(wide) + error) + 3 * tiny
    return np.where(np.maximum(product, np.abs(wide) + limit) <= largest, limit, np.inf)


# --- microscaling -----------------------------------------------------------------------------------------


def _encode_mx(x: Array, precision: Precision) -> dict[str, Array]:
    codes, scales = _empty(x, precision, np.dtype(np.uint8))
    for chunk in row_chunks(*x.shape):
        blocks = groups(_widen(x[chunk]), _size(precision))
        exponent = _exponent(_largest(blocks), x.dtype, precision)
        elements: F32 = np.divide(blocks, _power_of_two(exponent)[..., None])
        q = float32_to_float8_e4m3fn(elements) if precision.kind == "mxfp8" else _e2m1(elements)
        codes[chunk] = pack_lsb(q.reshape(x[chunk].shape), precision.bits)
        scales[chunk] = (exponent + 127).astype(np.uint8)  # modulo 256, as in MLX
    return {"weight": _words(codes), "scales": scales}


def _exponent(largest: F32, dtype: np.dtype[Any], precision: Precision) -> I32:
    """The smallest e with 2^e >= T(largest / greatest element); 0 where that underflows to zero.

    Read from the float's own exponent: log2 of a float just above a power of two rounds down to it.
    """
    scale = _widen(_narrow(largest / _LARGEST[precision.kind], dtype))
    mantissa, exponent = np.frexp(scale)
    smallest: I32 = exponent - (mantissa == 0.5)
    return smallest


def _power_of_two(exponent: I32) -> F32:
    return np.ldexp(np.float32(1), exponent).astype(np.float32)


def _e2m1(elements: F32) -> U8:
    """Codes of the nearest e2m1, ties to the smaller magnitude, without -0."""
    magnitude = np.abs(elements)
    codes = np.zeros(elements.shape, np.uint8)
    for midpoint in _E2M1_MIDPOINTS:
        codes += magnitude > midpoint
    codes += (elements < -_E2M1_MIDPOINTS[0]) * np.uint8(8)
    return codes


def _mx_bound(wide: F64, dtype: np.dtype[Any], parts: Mapping[str, Array], precision: Precision) -> F64:
    magnitude = np.abs(wide)
    exponent = _exponent(magnitude.max(axis=-1).astype(np.float32), dtype, precision)
    stored = parts["scales"].astype(np.int32) - 127
    step = np.ldexp(1.0, stored)[..., None]
    half = _half_step_e4m3 if precision.kind == "mxfp8" else _half_step_e2m1
    wrapped = (stored != exponent)[..., None]
    limit = np.where(wrapped, magnitude + step * _LARGEST[precision.kind], step * half(magnitude / step))
    return _finite(limit, magnitude)


# --- nvfp4 ------------------------------------------------------------------------------------------------


def _encode_nvfp4(x: Array, precision: Precision) -> dict[str, Array]:
    codes, scales = _empty(x, precision, np.dtype(np.uint8))
    global_scale = _largest_of_tensor(x) if precision.whole_tensor else None
    spread = _spread(global_scale)
    for chunk in row_chunks(*x.shape):
        blocks = groups(_widen(x[chunk]), _size(precision))
        scales[chunk], q = _nvfp4(blocks, spread, x.dtype)
        codes[chunk] = pack_lsb(q.reshape(x[chunk].shape), precision.bits)
    parts = {"weight": _words(codes), "scales": scales}
    return parts if global_scale is None else {**parts, "global_scale": global_scale}


def _spread(global_scale: Array | None) -> np.float32:
    """E, the factor that makes the largest magnitude of the tensor fill the range of the scales."""
    return np.float32(1) if global_scale is None else np.float32(_SCALE_RANGE / global_scale)


def _nvfp4(blocks: F32, spread: np.float32, dtype: np.dtype[Any]) -> tuple[U8, U8]:
    """Scale codes [rows, groups] and element codes [rows, groups, size]."""
    largest = _largest(blocks)
    scale = _widen(_narrow(largest / _LARGEST["nvfp4"], dtype)) * spread
    scales = float32_to_float8_e4m3fn(scale)
    scales[np.isnan(scale)] = 0xFE  # an empty group in a tensor so small that E is infinite
    elements = _scaled(blocks, scales, spread, dtype)
    codes = _e2m1(elements)
    far = ~(_scaled(largest[..., None], scales, spread, dtype)[..., 0] < _FAR)
    codes[far] = _nearest_by_distance(elements[far])
    return scales, codes


def _scaled(blocks: F32, scales: U8, spread: np.float32, dtype: np.dtype[Any]) -> F32:
    elements: F32 = blocks / E4M3[scales][..., None]
    _round_to(dtype.name, elements)
    elements *= spread
    return elements


def _nearest_by_distance(elements: F32) -> U8:
    """Return codes as MLX chooses them: the first of the smallest float32 distances; large values have equal ones."""
    distances = np.abs(elements[..., None] - _E2M1_SIGNED)
    nearest: U8 = distances.argmin(axis=-1).astype(np.uint8)
    return nearest


def _nvfp4_bound(wide: F64, dtype: np.dtype[Any], parts: Mapping[str, Array], precision: Precision) -> F64:
    unit, tiny, _ = _ROUNDING[dtype.name]
    magnitude = np.abs(wide)
    step = float_scale(parts, precision).astype(np.float64)[..., None]
    spread = np.float64(_spread(parts.get("global_scale")))
    exact = E4M3[parts["scales"]].astype(np.float64)[..., None] * float(parts.get("global_scale", 1))
    exact = exact / _SCALE_RANGE if "global_scale" in parts else exact
    position = magnitude / step
    drift = position * (np.abs(step / exact - 1) + 2 * (unit + 2.0**-22)) + tiny * spread
    limit = step * (_half_step_e2m1(position + drift) + drift) + 2.0**-149
    # Elsewhere (a scale of zero too) the value is lost or of the right sign: off by no more than itself.
    return _finite(np.where(position + drift < _FAR, limit, magnitude), magnitude)


# --- shared -----------------------------------------------------------------------------------------------

#: Of each type: half a unit in the last place, relative and at the least; the largest number.
_ROUNDING = {
    "float32": (2.0**-24, 2.0**-150, float(np.finfo(np.float32).max)),
    "float16": (2.0**-11, 2.0**-25, 65504.0),
    "bfloat16": (2.0**-8, 2.0**-134, float.fromhex("0x1.fep127")),
}


def _size(precision: Precision) -> int:
    assert precision.block is not None
    return precision.block


def _empty(x: Array, precision: Precision, scale_dtype: np.dtype[Any]) -> tuple[U8, Array]:
    """Allocate packed codes [rows, bytes] and scales [rows, groups]."""
    rows, cols = x.shape
    codes = np.empty((rows, cols * precision.bits // 8), np.uint8)
    return codes, np.empty((rows, cols // _size(precision)), scale_dtype)


def _words(packed: U8) -> Array:
    return packed.view("<u4").astype(np.uint32, copy=False)


def _extremes(blocks: F32) -> tuple[F32, F32]:
    """Smallest and largest [rows, groups]; several times faster over the first axis than over the last.

    Four elements are transposed at once, as one of 16 bytes: every group size is a multiple of 4.
    """
    quads = np.ascontiguousarray(blocks).reshape(-1, blocks.shape[-1]).view(np.complex128)
    columns = np.ascontiguousarray(quads.T).view(np.float32)
    low, high = _folded(np.minimum, columns), _folded(np.maximum, columns)
    return low.reshape(blocks.shape[:-1]), high.reshape(blocks.shape[:-1])


def _folded(choose: np.ufunc, columns: F32) -> F32:
    """Reduce the first axis of [n, 4 * groups], then the four of each group."""
    four = choose.reduce(columns, axis=0)
    two = choose(four[0::2], four[1::2])
    one: F32 = choose(two[0::2], two[1::2])
    return one


def _largest(blocks: F32) -> F32:
    """Largest magnitude [rows, groups]."""
    low, high = _extremes(blocks)
    return np.maximum(np.abs(low), np.abs(high))


def _largest_of_tensor(x: Array) -> Array:
    """Largest magnitude, float32 []."""
    wide = (_widen(x[chunk]) for chunk in row_chunks(*x.shape))
    return np.array(max(max(abs(part.min()), abs(part.max())) for part in wide), np.float32)


def float_scale(parts: Mapping[str, Array], precision: Precision, rows: slice = slice(None)) -> F32:
    """Return the factor of e2m1 and e4m3 elements, [rows, groups]."""
    codes = parts["scales"][rows]
    if precision.kind != "nvfp4":
        return _power_of_two(codes.astype(np.int32) - 127)
    scale: F32 = E4M3[codes]
    if "global_scale" in parts:
        scale *= parts["global_scale"].reshape(()) / _SCALE_RANGE
    return scale


def _dtype_name(values: Array) -> str:
    return "bfloat16" if values.dtype == np.uint16 else values.dtype.name


def _widen(values: Array) -> F32:
    """Widen to float32, exactly; no copy of a float32 array."""
    if values.dtype == np.uint16:
        return bfloat16_to_float32(values)
    return as_float32(values)


def _narrow(values: F32, dtype: np.dtype[Any]) -> Array:
    """Round to the source's type."""
    if is_bfloat16(dtype):
        return float32_to_bfloat16(values).view(dtype)
    return values.astype(dtype, copy=False)


def _round_to(name: str, values: F32) -> None:
    """Round float32 values in place to the type of that name."""
    if name == "float16":
        values[...] = values.astype(np.float16)
    elif name == "bfloat16":
        bits = values.view(np.uint32)
        half = (bits >> np.uint32(16)) & np.uint32(1)
        half += np.uint32(0x7FFF)
        bits += half
        bits &= np.uint32(0xFFFF0000)


def _half_step_e2m1(position: F64) -> F64:
    """Largest |position - e2m1(position)| at or below a position >= 0; all of it where MLX loses the value."""
    beyond = np.where(position < _FAR, np.maximum(1, position - 6), position)
    return np.where(position <= 2, 0.25, np.where(position <= 4, 0.5, beyond))


def _half_step_e4m3(position: F64) -> F64:
    """Largest |position - e4m3(position)| at or below a position >= 0."""
    exponent = np.frexp(position)[1] - 1
    half: F64 = np.ldexp(1.0, np.maximum(exponent, -6) - 4)
    return np.maximum(half, position - 448)


def _finite(limit: F64, magnitude: F64) -> F64:
    """`limit`, infinite where the decoded value may overflow float32."""
    return np.where(magnitude + limit <= _ROUNDING["float32"][2], limit, np.inf)


traits = Traits(
    proof="exact: mlx 0.32.4, CPU backend",
    bound="half a step; beyond the last level the distance to it; plus rounding in the source's type",
    source_dtypes=True,
    overflowed=overflowed,
)

__all__ = ["bound", "decode", "encode", "float_scale", "overflowed", "traits"]
