"""Store a lattice in the parts of a format; values that it cannot represent are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.bridges import _minifloats
from edgekit.bridges._lattice import Lattice, Minifloats
from edgekit.bridges._planes import join
from edgekit.errors import InexactError
from edgekit.numerics.bits import pack_lsb
from edgekit.precision import Precision
from edgekit.reference import Parts
from edgekit.reference.ggml import TYPES, tq1_0
from edgekit.reference.ggml._layout import Blocks
from edgekit.reference.onnx import int8
from edgekit.reference.openvino import _layout
from edgekit.typing import F16, F32, I16, U8, Array


def write(values: Lattice | Minifloats, precision: Precision, exact: bool = True) -> Parts:
    """Return the parts in which `precision` stores the lattice.

    Args:
        values: the lattice, or the small floats.
        precision: the format to write.
        exact: True refuses a scale or offset that its stored type would round; False rounds it.

    Raises:
        InexactError: the format cannot represent a code, a scale or an offset; names it.
    """
    if isinstance(values, Minifloats):
        if _minifloats.holds(precision):
            return _minifloats.write(values, precision)
        values = _minifloats.as_lattice(values)
    size = precision.block or values.codes.shape[1]
    fitted = values.regrouped(size)
    if fitted is None:
        raise InexactError(f"groups of {values.group} have scales of their own, {precision} has one for {size}")
    writer = _WRITERS.get((precision.convention, precision.kind)) or _WRITERS.get((precision.convention, "*"))
    if writer is None:
        raise InexactError(f"{precision} is not a lattice with a bridge")
    return writer(fitted, precision, exact)


def _float16(values: F32, what: str, exact: bool) -> F16:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    if not np.isfinite(narrow).all() or (exact and (narrow.astype(np.float32) != values).any()):
        raise InexactError(f"a {what} is not a float16 value")
    return narrow


def _zero(lattice: Lattice, top: int) -> U8:
    """Return integer zero points in 0 … top."""
    if lattice.zero is None:
        return _integral(lattice, top)
    if ((lattice.zero < 0) | (lattice.zero > top)).any():
        raise InexactError(f"a zero point lies outside of 0 … {top}")
    return lattice.zero.astype(np.uint8)


def _integral(lattice: Lattice, top: int) -> U8:
    """Return zero points for real offsets that are whole numbers of steps."""
    assert lattice.bias is not None
    with np.errstate(all="ignore"):
        steps = np.where(lattice.scale == 0, np.float32(0), -lattice.bias / lattice.scale)
    zero = np.rint(steps)
    off = (zero < 0) | (zero > top) | ~np.isfinite(steps) | (zero * lattice.scale != -lattice.bias)
    if off.any():
        raise InexactError(f"an offset is not a whole number of steps in 0 … {top}")
    return zero.astype(np.uint8)


def _shifted(lattice: Lattice, middle: int, top: int) -> U8:
    """Return codes for a format whose zero is fixed at `middle`."""
    zero: I16 = _zero(lattice, 255).astype(np.int16) if lattice.zero is None else lattice.zero
    codes = lattice.codes + (np.int16(middle) - lattice.by_column(zero))
    if not lattice.scale.all():
        codes[np.broadcast_to(lattice.by_column(lattice.scale == 0), codes.shape)] = (
            middle  # there every code decodes to 0
        )
    if ((codes < 0) | (codes > top)).any():
        raise InexactError(f"a code lies outside of {-middle} … {top - middle}")
    return codes.astype(np.uint8)


def _as_is(lattice: Lattice, top: int) -> U8:
    if (lattice.codes > top).any():
        raise InexactError(f"a code lies outside of 0 … {top}")
    return lattice.codes


def _signs(lattice: Lattice) -> tuple[U8, F32]:
    """Return 1 for the scale and 0 for its negative [rows, cols], and the scale [rows, groups]."""
    codes = lattice.codes.astype(np.int16)
    if lattice.zero is not None:
        scale, levels = lattice.scale, codes - lattice.by_column(lattice.zero)
    else:
        scale, levels = lattice.scale / np.float32(2), codes * np.int16(2) - np.int16(1)
    if (lattice.zero is None and (_bias(lattice) != -scale).any()) or (np.abs(levels) != 1).any():
        raise InexactError("a value is neither plus nor minus its scale")
    return (levels > 0).astype(np.uint8), scale


def _bias(lattice: Lattice) -> F32:
    if lattice.bias is not None:
        return lattice.bias
    assert lattice.zero is not None
    return -(lattice.zero * lattice.scale)


def _affine(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    bits, top = precision.bits, (1 << precision.bits) - 1
    if precision.granularity == "tensor" and (lattice.scale != lattice.scale[0, 0]).any():
        raise InexactError("rows have scales of their own")
    if precision.symmetric and bits == 1:
        signs, scale = _signs(lattice)
        return {"codes": pack_lsb(signs, 1), "scale": _own(scale, precision)}
    if precision.symmetric:
        codes = _shifted(lattice, 1 << (bits - 1), top)
        return {"codes": pack_lsb(codes, bits), "scale": _own(lattice.scale, precision)}
    zero = _zero(lattice, top)
    parts = {"codes": pack_lsb(_as_is(lattice, top), bits), "scale": _own(lattice.scale, precision)}
    return {**parts, "zero_point": _own(zero, precision)}


def _own(values: Array, precision: Precision) -> Array:
    return np.ascontiguousarray(values[:1, :1] if precision.granularity == "tensor" else values)


def _mlx(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    if precision.bits == 1 and lattice.zero is not None and (lattice.codes > 1).any():
        signs, scale = _signs(lattice)
        lattice = Lattice(signs, scale * np.float32(2), lattice.group, bias=-scale)
    codes = pack_lsb(_as_is(lattice, (1 << precision.bits) - 1), precision.bits)
    words = np.ascontiguousarray(codes).view("<u4").astype(np.uint32, copy=False)
    scales = np.ascontiguousarray(lattice.scale)
    return {"weight": words, "scales": scales, "biases": np.ascontiguousarray(_bias(lattice))}


def _zero_parts(lattice: Lattice, precision: Precision, name: str, filler: int) -> tuple[U8, Parts]:
    """Return codes, and packed zero points if the format has them, by the parts' names."""
    bits, top = precision.bits, (1 << precision.bits) - 1
    if precision.symmetric:
        return _shifted(lattice, 1 << (bits - 1), top), {}
    zero = _zero(lattice, top)
    padded = np.pad(zero, ((0, 0), (0, -zero.shape[1] % (8 // bits))), constant_values=filler)
    return _as_is(lattice, top), {name: pack_lsb(padded, bits)}


def _onnx(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    codes, zeros = _zero_parts(lattice, precision, "zero_points", 1 << (precision.bits - 1))
    rest = np.zeros((len(codes), -codes.shape[1] % lattice.group), np.uint8)
    packed = pack_lsb(np.concatenate([codes, rest], axis=1), precision.bits).reshape(*lattice.scale.shape, -1)
    return {"B": packed, "scales": np.ascontiguousarray(lattice.scale), **zeros}


def _onnx_qdq(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    """Return codes as [in, out], in two's complement if symmetric."""
    stored: Parts = {"scale": np.ascontiguousarray(lattice.scale.T)}
    if precision.symmetric:
        codes = _shifted(lattice, 8, 15) ^ np.uint8(8)
    else:
        codes = _as_is(lattice, 15)
        stored["zero_point"] = pack_lsb(np.ascontiguousarray(_zero(lattice, 15).T).reshape(-1), 4)
    return {"codes": pack_lsb(np.ascontiguousarray(codes.T).reshape(-1), 4), **stored}


def _onnx_bytes(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    """Return 8-bit codes, signed or unsigned, with one scale for each row or for the tensor."""
    signed = precision.kind == "int8"
    if precision.symmetric:
        middle = int8.middle(precision) + (128 if signed else 0)
        codes, zero = _shifted(lattice, middle, 255), np.full(lattice.scale.shape, middle, np.uint8)
    else:
        codes, zero = _as_is(lattice, 255), _zero(lattice, 255)
    stored = tuple(_signed(each) if signed else each for each in (codes, zero))
    if precision.granularity != "tensor":
        return {"codes": stored[0], "scale": lattice.scale[:, 0].copy(), "zero_point": stored[1][:, 0].copy()}
    if (lattice.scale != lattice.scale[0, 0]).any() or (zero != zero[0, 0]).any():
        raise InexactError("rows have scales of their own")
    return {"codes": stored[0], "scale": np.array(lattice.scale[0, 0]), "zero_point": np.array(stored[1][0, 0])}


def _signed(codes: U8) -> Array:
    """Convert codes counted from -128 to int8."""
    return np.ascontiguousarray(codes ^ np.uint8(128)).view(np.int8)


def _olive(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    codes, zeros = _zero_parts(lattice, precision, "qzeros", 0)
    return {"qweight": pack_lsb(codes, precision.bits), "scales": np.ascontiguousarray(lattice.scale), **zeros}


def _openvino(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    bits, half = precision.bits, 1 << (precision.bits - 1)
    scale = _float16(lattice.scale, "scale", exact)
    shape = (*scale.shape, 1) if precision.granularity == "group" else scale.shape
    stored: Parts = {"scale": scale.reshape(shape)}
    if precision.kind in ("int3", "int2"):
        packed = _layout.pack(_shifted(lattice, half, 2 * half - 1).reshape(-1), bits)
        rows, cols = lattice.codes.shape
        return {"codes": _layout.in_rows(packed, rows, cols, bits), **stored, "zero_point": np.array(half, np.int8)}
    if precision.symmetric:
        codes = _shifted(lattice, half, 2 * half - 1) ^ np.uint8(half)  # offset to two's complement
    else:
        codes, zero = _as_is(lattice, 2 * half - 1), _zero(lattice, 2 * half - 1)
        stored["zero_point"] = zero.reshape(shape) if bits == 8 else _rows_or_flat(zero, bits)
    packed = _rows_or_flat(codes, bits)
    return {"codes": packed.view(np.int8) if bits == 8 and precision.symmetric else packed, **stored}


def _rows_or_flat(codes: U8, bits: int) -> U8:
    """Pack codes as [rows, bytes], or as one stream if a row does not fill whole bytes."""
    return pack_lsb(codes if codes.shape[1] * bits % 8 == 0 else codes.reshape(-1), bits)


def _ggml(
    top: int, middle: int | None, fill: Callable[[Blocks, U8], None]
) -> Callable[[Lattice, Precision, bool], Parts]:
    def writer(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
        codes = _as_is(lattice, top) if middle is None else _shifted(lattice, middle, top)
        blocks = np.empty(lattice.scale.size, TYPES[precision.kind].LAYOUT)
        blocks["d"] = _float16(lattice.scale, "scale", exact).reshape(-1)
        if middle is None:
            blocks["m"] = _float16(_bias(lattice), "offset", exact).reshape(-1)
        fill(blocks, codes.reshape(-1, TYPES[precision.kind].SIZE))
        return {"blocks": blocks.view(np.uint8).reshape(len(codes), -1)}

    return writer


def _four_bits(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = join((codes & np.uint8(15)).reshape(-1, 2, 16), 4)


def _five_bits(blocks: Blocks, codes: U8) -> None:
    _four_bits(blocks, codes)
    high = pack_lsb(codes >> np.uint8(4), 1)
    blocks["qh"] = high.view("<u4").reshape(-1) if blocks["qh"].ndim == 1 else high


def _eight_bits(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = (codes ^ np.uint8(128)).view(np.int8)


def _two_bits(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = pack_lsb(codes, 2)


def _two_bits_in_planes(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = join(codes.reshape(-1, 4, 32), 2).reshape(-1, 64)


def _five_digits(blocks: Blocks, codes: U8) -> None:
    blocks["qs"], blocks["qh"] = tq1_0.pack(codes)


def _one_bit(lattice: Lattice, precision: Precision, exact: bool) -> Parts:
    signs, scale = _signs(lattice)
    blocks = np.empty(scale.size, TYPES["Q1_0"].LAYOUT)
    blocks["d"] = _float16(scale, "scale", exact).reshape(-1)
    blocks["qs"] = pack_lsb(signs.reshape(-1, TYPES["Q1_0"].SIZE), 1)
    return {"blocks": blocks.view(np.uint8).reshape(len(signs), -1)}


_WRITERS: dict[tuple[str, str], Callable[[Lattice, Precision, bool], Parts]] = {
    ("affine", "*"): _affine,
    ("olive", "*"): _olive,
    **{("mlx", f"int{bits}"): _mlx for bits in (1, 2, 3, 4, 5, 6, 8)},
    **{("onnx", kind): _onnx for kind in ("int2", "int4")},
    ("onnx", "int8"): lambda *given: (_onnx if given[1].granularity == "group" else _onnx_bytes)(*given),
    ("onnx", "uint8"): _onnx_bytes,
    ("onnx", "qdq_int4"): _onnx_qdq,
    **{("openvino", kind): _openvino for kind in ("int2", "int3", "int4", "int8")},
    ("ggml", "Q4_0"): _ggml(15, 8, _four_bits),
    ("ggml", "Q4_1"): _ggml(15, None, _four_bits),
    ("ggml", "Q5_0"): _ggml(31, 16, _five_bits),
    ("ggml", "Q5_1"): _ggml(31, None, _five_bits),
    ("ggml", "Q8_0"): _ggml(255, 128, _eight_bits),
    ("ggml", "Q1_0"): _one_bit,
    ("ggml", "Q2_0"): _ggml(3, 1, _two_bits),
    ("ggml", "TQ1_0"): _ggml(2, 1, _five_digits),
    ("ggml", "TQ2_0"): _ggml(3, 1, _two_bits_in_planes),
}
