"""Which scales and biases a stored tensor could have instead of its own, and putting them in their place."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np

from edgekit.bridges._levels import blocks_of, evolved, levels
from edgekit.numerics.bits import pack_lsb
from edgekit.numerics.smallfloats import E4M3, bfloat16_to_float32, float32_to_bfloat16, float32_to_float8_e4m3fn
from edgekit.reference.ggml import _sixbit, q3_k
from edgekit.reference.ggml._layout import Blocks
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, U8, Array, Indices

#: Gives the neighbours that can be stored of wanted values [..., rows] of some rows and a group of columns, or [...,
#: groups, rows] and a slice of groups: one array or two.
Near = Callable[[F32, slice, int | slice], tuple[F32, ...]]


@attrs.frozen(eq=False)
class Choices:
    """What the scales of a tensor can be.

    Attributes:
        scale: gives the neighbours of wanted scales.
        bias: those of wanted biases; None where the format has none.
    """

    scale: Near
    bias: Near | None = None


def choices(tensor: QuantizedTensor) -> Choices | None:
    """What the scales of a tensor can be; None where they cannot be chosen group by group."""
    precision, parts = tensor.precision, tensor.parts
    if precision.convention == "ggml":
        return _of_blocks(tensor)
    name = _scale_part(tensor)
    if name is None or parts[name].size != levels(tensor).scale.size:  # one for the whole tensor
        return None
    near = _rounding(parts[name], precision.scale_dtype)
    return None if near is None else Choices(near, near if "biases" in parts else None)


def rescaled(tensor: QuantizedTensor, scale: F32, bias: F32 | None = None) -> QuantizedTensor:
    """The tensor with the same codes under other scales, and biases where the format has them.

    Args:
        tensor: one that has `choices`.
        scale: [rows, groups], each one that can be stored there.
        bias: likewise.
    """
    if tensor.precision.convention == "ggml":
        blocks = blocks_of(tensor).copy()
        _PUT[tensor.precision.kind](blocks, scale, bias)
        return evolved(tensor, {"blocks": blocks.view(np.uint8).reshape(tensor.rows, -1)})
    name = _scale_part(tensor)
    assert name is not None
    turned = scale.T if tensor.precision.kind == "qdq_int4" else scale  # stored as [in, out]
    parts = {name: _stored(turned, tensor.parts[name], tensor.precision.scale_dtype)}
    if "biases" in tensor.parts and bias is not None:
        parts["biases"] = _stored(bias, tensor.parts["biases"], "")
    return evolved(tensor, parts)


def _scale_part(tensor: QuantizedTensor) -> str | None:
    if "global_scale" in tensor.parts:
        return None
    return next((name for name in ("scale", "scales") if name in tensor.parts), None)


def _rounding(part: Array, scale_dtype: str | None) -> Near | None:
    if part.dtype == np.uint8:
        return _near_e8m0 if scale_dtype == "float8_e8m0fnu" else _near_e4m3
    if part.dtype == np.float32:
        return lambda wanted, rows, group: (wanted,)
    return lambda wanted, rows, group: (_widened(_narrowed(wanted, part)),)


def _narrowed(values: F32, part: Array) -> Array:
    if part.dtype == np.uint16:
        return float32_to_bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(part.dtype)


def _widened(values: Array) -> F32:
    return bfloat16_to_float32(values) if values.dtype == np.uint16 else values.astype(np.float32)


def _stored(values: F32, part: Array, scale_dtype: str | None) -> Array:
    if part.dtype != np.uint8:
        return _narrowed(values, part).reshape(part.shape)
    if scale_dtype == "float8_e8m0fnu":
        return (np.frexp(values)[1] + 126).astype(np.uint8).reshape(part.shape)
    return float32_to_float8_e4m3fn(values).reshape(part.shape)


def _near_e8m0(wanted: F32, rows: slice, group: int | slice) -> tuple[F32, ...]:
    """The powers of two around a positive value."""
    exponent = np.clip(np.frexp(np.maximum(np.abs(wanted), np.float32(2.0**-120)))[1], -100, 100)
    return np.ldexp(np.float32(1), exponent - 1), np.ldexp(np.float32(1), exponent)


_POSITIVE = np.array(sorted(set(np.abs(E4M3[np.isfinite(E4M3)]).tolist())), np.float32)


def _near_e4m3(wanted: F32, rows: slice, group: int | slice) -> tuple[F32, ...]:
    place = np.clip(np.searchsorted(_POSITIVE, wanted), 1, len(_POSITIVE) - 1)
    return _POSITIVE[place - 1], _POSITIVE[place]


def _near_float16(wanted: F32, rows: slice, group: int | slice) -> tuple[F32, ...]:
    with np.errstate(over="ignore"):
        return (wanted.astype(np.float16).astype(np.float32),)


def _multiples(d: F32, rows: int, subs: int, low: int, high: int) -> Near:
    """Whole multiples, `low` to `high`, of the d [blocks] of each super-block of `subs` groups."""
    unit = np.ascontiguousarray(d.reshape(rows, -1).T)
    divisor = np.where(unit == 0, np.float32(np.inf), unit)  # every multiple of 0 is 0
    least, most = np.float32(low), np.float32(high)

    def near(wanted: F32, rows: slice, group: int | slice) -> tuple[F32, ...]:
        block: int | Indices = group // subs if isinstance(group, int) else np.arange(group.start, group.stop) // subs
        each = unit[block, rows]
        with np.errstate(over="ignore"):
            steps = wanted / divisor[block, rows]
        lower = np.floor(np.minimum(np.maximum(steps, least), most))
        return each * lower, each * np.minimum(lower + np.float32(1), most)

    return near


def _of_blocks(tensor: QuantizedTensor) -> Choices | None:
    kind, rows = tensor.precision.kind, tensor.rows
    if kind == "MXFP4":
        return Choices(_near_e8m0)
    if kind == "NVFP4":
        return None
    blocks = blocks_of(tensor)
    d = blocks["d"].astype(np.float32)
    if kind in _LIMITS:
        subs, low, high = _LIMITS[kind]
        bias = None
        if "dmin" in (blocks.dtype.names or ()):
            bias = _multiples(-blocks["dmin"].astype(np.float32), rows, subs, 0, high)
        return Choices(_multiples(d, rows, subs, low, high), bias)
    return Choices(_near_float16, _near_float16 if "m" in (blocks.dtype.names or ()) else None)


#: Sub-blocks of a super-block, and the whole multiples of d that their scales can be.
_LIMITS = {
    "Q2_K": (16, 0, 15),
    "Q3_K": (16, -32, 31),
    "Q4_K": (8, 0, 63),
    "Q5_K": (8, 0, 63),
    "Q6_K": (16, -128, 127),
    "IQ4_XS": (8, -32, 31),
}


def _steps(values: F32, d: F32, subs: int) -> F32:
    """The multiples of d that the values are, [blocks, subs]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = values.reshape(-1, subs) / d[:, None]
    return np.rint(np.where(d[:, None] == 0, np.float32(0), steps))


def _put_plain(blocks: Blocks, scale: F32, bias: F32 | None) -> None:
    blocks["d"] = scale.reshape(-1)
    if bias is not None:
        blocks["m"] = bias.reshape(-1)


def _put_affine(blocks: Blocks, scale: F32, bias: F32 | None) -> None:
    subs = 16 if blocks.dtype.fields and blocks["scales"].shape[1] == 16 else 8
    assert bias is not None
    steps = _steps(scale, blocks["d"].astype(np.float32), subs).astype(np.uint8)
    minima = _steps(bias, -blocks["dmin"].astype(np.float32), subs).astype(np.uint8)
    blocks["scales"] = steps | minima << np.uint8(4) if subs == 16 else _sixbit.pack(steps, minima)


def _put_q3_k(blocks: Blocks, scale: F32, bias: F32 | None) -> None:
    steps = _steps(scale, blocks["d"].astype(np.float32), 16)
    blocks["scales"] = q3_k.pack_scales((steps + np.float32(32)).astype(np.uint8))


def _put_q6_k(blocks: Blocks, scale: F32, bias: F32 | None) -> None:
    blocks["scales"] = _steps(scale, blocks["d"].astype(np.float32), 16).astype(np.int8)


def _put_iq4_xs(blocks: Blocks, scale: F32, bias: F32 | None) -> None:
    stored: U8 = (_steps(scale, blocks["d"].astype(np.float32), 8) + np.float32(32)).astype(np.uint8)
    blocks["scales_h"], blocks["scales_l"] = pack_lsb(stored >> np.uint8(4), 2), pack_lsb(stored & np.uint8(15), 4)


def _put_mxfp4(blocks: Blocks, scale: F32, bias: F32 | None) -> None:
    name = (blocks.dtype.names or ())[0]
    blocks[name] = (np.frexp(scale)[1] + 126).astype(np.uint8).reshape(blocks[name].shape)


_PLAIN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "IQ4_NL")
_PUT: dict[str, Callable[[Blocks, F32, F32 | None], None]] = {
    **dict.fromkeys(_PLAIN, _put_plain),
    **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), _put_affine),
    "Q3_K": _put_q3_k,
    "Q6_K": _put_q6_k,
    "IQ4_XS": _put_iq4_xs,
    "MXFP4": _put_mxfp4,
}
