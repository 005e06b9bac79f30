"""OpenVINO's formats, bit-exact: weights as `nncf.compress_weights` writes them into an IR.

A row [cols] is divided into groups of `size` consecutive elements (per channel: one group, the whole row); a group has
one scale. All arithmetic is float32, with every operation rounded once; / is a true division.

    encode   s = fit(group)                      code = quantize(group / s)
    decode   (LEVELS[code] - zero point) * t     t: the scale as it is stored, widened to float32

The formats are specified in the modules `integers` (int8, int4, int3, int2), `codebooks` (nf4, cb4) and `floats` (fp4,
fp8, mxfp4, mxfp8, nvfp4). Codes are computed with the float32 scale s, and decoded with the stored scale t, which is s
rounded to float16 (mx: already a power of two; nvfp4: see `floats`).

    part           dtype    shape                                          holds
    codes          uint8    [rows, cols * bits / 8]; flat if a row does    the constant's bytes in the IR's .bin
                   (int8)   not fill whole bytes (int8-sym: int8)
    scale          float16  [rows, groups, 1]; per channel [rows, 1]       mxfp*: uint8, float8_e8m0fnu patterns
                                                                           nvfp4: uint8, float8_e4m3fn patterns
    zero_point     uint8    int8-asym: as scale. int4-asym: packed as the codes, [rows, groups / 2] or flat
                   int8     int3, int2: one for the whole tensor, shape (), 4 or 2
    global_scale   float32  nvfp4: [1, 1, 1]

Decoding is what the IR's graph computes if it is compiled with ``INFERENCE_PRECISION_HINT: f32``: each constant is
widened to float32, the zero point is subtracted, and one product is rounded. The graph's types are float16; with the
hint the CPU plugin computes in float32, without it in bfloat16 or float16, which changes decoded weights by about one
part in 256. Two faults of the CPU plugin: its product with 4-bit weights is wrong for groups with an odd number of
elements (decoding alone is right), so devices need even groups; and it converts e8m0 scales through float16, so that
scales of mxfp4 and mxfp8 from 2^16 on are infinite and those below 2^-24 are zero.

A scale that overflows float16 becomes infinite, as NNCF's does; `overflowed` reports it, and `edgekit.encode` refuses
it. Codes do not depend on whether the source is float32, float16 or bfloat16.

Source: nncf 3.4.0, `weight_lowering.py` and `optimized_functions/models.py`, on openvino 2026.4.1. Tested against both:
every byte of every part, and every decoded value (tests/oracles/test_openvino_exact.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.reference.openvino import _layout, _scales, codebooks, floats, integers
from edgekit.typing import F32, F64, U8, Array

_LARGEST = float(np.finfo(np.float32).max)


class Scheme(Protocol):
    """The interface of the formats' modules; scales and zero points are [groups, 1]."""

    def fit(self, groups: F32, precision: Precision, size: int) -> tuple[F32, F32]:
        """Return float32 scales and zero points of groups [groups, n]; `size`: the tensor's number of elements."""
        ...

    def quantize(self, groups: F32, scale: F32, zero_point: F32, precision: Precision) -> U8:
        """Return the codes in the lowest bits of each byte, in the shape of groups."""
        ...

    def levels(self, precision: Precision) -> F32:
        """Return the level of each code, before zero point and scale: float32 [2**bits]."""
        ...


_SCHEMES: dict[str, Scheme] = {
    **dict.fromkeys(("int8", "int4", "int3", "int2"), integers),
    **dict.fromkeys(("nf4", "cb4"), codebooks),
    **dict.fromkeys(("fp4", "fp8", "mxfp4", "mxfp8", "nvfp4"), floats),
}


def encode(x: Array, precision: Precision, importance: F32 | None = None) -> dict[str, Array]:
    """Encode [rows, cols]; importance is ignored.

    x must be the whole tensor, or, if `precision.rowwise`, any of its rows.
    """
    groups, rows = _groups(x, precision), len(x)
    scheme, bits = _SCHEMES[precision.kind], precision.bits
    codes = np.empty(_layout.packed_bytes(x.size, bits), np.uint8)
    scale = np.empty((len(groups), 1), _scales.carrier(precision))
    zero_point = np.empty((len(groups), 1), np.uint8)
    with np.errstate(all="ignore"):
        shared = _scales.global_scale(x, precision)
        for chunk, span in _layout.chunks(groups.shape, bits):
            part = as_float32(groups[chunk])
            s, z = scheme.fit(part, precision, x.size)
            patterns = scheme.quantize(part, s, z, precision)
            codes[span] = _layout.pack(patterns.reshape(-1), bits)
            scale[chunk], zero_point[chunk] = _scales.narrow(s, shared, precision), z
    return {
        "codes": _as_stored(_layout.in_rows(codes, rows, x.shape[1], bits), precision),
        "scale": scale.reshape((rows, -1, 1) if precision.block else (rows, 1)),
        **({"global_scale": shared} if precision.kind == "nvfp4" else {}),
        **_scales.zero_point_part(zero_point, precision, rows),
    }


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]: (level - zero point) * scale, the difference exact, the product rounded."""
    values = np.empty(shape, np.float32)
    groups, bits = _groups(values, precision), precision.bits
    codes, levels = parts["codes"].reshape(-1).view(np.uint8), _SCHEMES[precision.kind].levels(precision)
    with np.errstate(all="ignore"):
        scale, zero_point = _scales.widen(parts, precision), _scales.zero_points(parts, precision, len(groups))
        for chunk, span in _layout.chunks(groups.shape, bits):
            part = groups[chunk]
            part[:] = _layout.look_up(codes[span], levels, bits, part.size).reshape(part.shape)
            if zero_point is not None:
                part -= zero_point[chunk]
            part *= scale[chunk]
    return values


def bound(x: F32, parts: Mapping[str, Array], precision: Precision) -> F64:
    """Return half the gap around x / s, or the distance to the last level, plus the effect of rounding s for storage.

    |x - level * t| <= |x - level * s| + |level| * |s - t|, where s is the float32 scale and t the stored one. The bound
    is infinite if the decoded value can overflow float32: mxfp4 from 1.75 * 2**127 on, mxfp8 from 1.9375 * 2**127.
    """
    groups = _groups(x, precision)
    scheme = _SCHEMES[precision.kind]
    with np.errstate(all="ignore"):
        scale, _ = scheme.fit(groups, precision, x.size)
        stored = _scales.widen(parts, precision).astype(np.float64)
        zero_point = _scales.zero_points(parts, precision, len(groups))
        s, wide = np.abs(scale.astype(np.float64)), groups / scale.astype(np.float64)
        reach = _reach(wide, scheme.levels(precision), zero_point, precision)
        largest = np.abs(wide) + reach
        # The sum x / s + zero point is rounded to float32 before it is rounded to a code.
        rounding = (largest if zero_point is None else largest + zero_point) * s * 2.0**-22
        total = reach * s + largest * np.abs(scale - stored) + rounding
        total[largest * np.abs(stored) > _LARGEST] = np.inf
    return total.reshape(x.shape)


def overflowed(parts: Mapping[str, Array], precision: Precision) -> str:
    """Return the name of the part with an overflowing float16 scale, stored or (nvfp4) computed; "" if none does."""
    with np.errstate(all="ignore"):
        return "" if np.isfinite(_scales.widen(parts, precision)).all() else "scale"


def _groups(x: Array, precision: Precision) -> Array:
    """Return rows [rows, cols] viewed as groups [groups, n], row by row."""
    return x.reshape(-1, precision.block or x.shape[1])


def _as_stored(codes: U8, precision: Precision) -> Array:
    """Return codes as int8 if the IR's element type is i8, else unchanged."""
    return codes.view(np.int8) if precision.kind == "int8" and precision.symmetric else codes


def _reach(wide: F64, levels: F32, zero_point: F32 | None, precision: Precision) -> F64:
    """Return the largest distance of x / s from its level, in units of s."""
    grid = np.unique(levels[np.isfinite(levels)]).astype(np.float64)
    if zero_point is not None:
        wide = wide + zero_point
    above = np.clip(np.searchsorted(grid, wide), 1, len(grid) - 1)
    reach = (grid[above] - grid[above - 1]) / 2
    beyond = np.maximum(wide - grid[-1], grid[0] - wide)
    # fp8 is converted through float16: half a unit in its last place more.
    twice = np.abs(wide) * 2.0**-11 + 2.0**-25 if precision.kind in ("fp8", "mxfp8") else 0.0
    result: F64 = np.maximum(reach, beyond) + twice
    return result


traits = Traits(
    proof="exact: nncf 3.4.0 on openvino 2026.4.1",
    bound="half a step; beyond the last level the distance to it; plus the scale's rounding to float16",
    widens=True,
    decoded_through={"nvfp4": "float16"},  # the scale times the global scale; e4m3 itself has no infinity
    overflowed=overflowed,
)

__all__ = ["Scheme", "bound", "decode", "encode", "overflowed", "traits"]
