"""Take a stored tensor apart into its lattice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bridges._lattice import F32, U8, Lattice, Minifloats
from edgekit.bridges._planes import split
from edgekit.errors import InexactError
from edgekit.reference._bits import unpack_lsb
from edgekit.reference.ggml import TYPES, _sixbit, q3_k, q6_k
from edgekit.reference.ggml._layout import Blocks
from edgekit.smallfloats import bfloat16_to_float32, to_float32
from edgekit.tensor import QuantizedTensor


def read(tensor: QuantizedTensor) -> Lattice | Minifloats:
    """The lattice, or the small floats, that a tensor's parts stand for.

    Raises:
        InexactError: its format is neither.
    """
    precision = tensor.precision
    if precision.kind in ("MXFP4", "mxfp4", "mxfp8"):
        return _minifloats(tensor)
    reader = _READERS.get(precision.convention)
    if reader is None:
        raise InexactError(f"{precision} is no lattice of evenly spaced levels")
    return reader(tensor)


def _shape(tensor: QuantizedTensor) -> tuple[int, int]:
    return tensor.rows, tensor.shape[-1]


def _group(tensor: QuantizedTensor) -> int:
    return tensor.precision.block or tensor.shape[-1]


def _integer(tensor: QuantizedTensor, codes: U8, scale: F32, zero: U8 | int) -> Lattice:
    zeros = np.broadcast_to(np.asarray(zero, np.int16), scale.shape)
    return Lattice(codes, scale, _group(tensor), zero=zeros)


def _affine(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    codes = unpack_lsb(parts["codes"], bits, tensor.shape[-1])
    scale = np.broadcast_to(parts["scale"], (tensor.rows, parts["scale"].shape[1]))
    if tensor.precision.symmetric and bits == 1:  # -s and +s
        return Lattice(codes, 2 * scale, _group(tensor), bias=-scale)
    zero = parts["zero_point"] if "zero_point" in parts else 1 << (bits - 1)
    return _integer(tensor, codes, scale, zero)


def _mlx(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    if "biases" not in parts or parts["scales"].dtype != np.float32:
        raise InexactError("its values are rounded to the type of its scales, which have to be float32 to be a lattice")
    packed = np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8)
    codes = unpack_lsb(packed, bits, tensor.shape[-1])
    return Lattice(codes, parts["scales"], _group(tensor), bias=parts["biases"])


def _packed_zeros(packed: U8 | None, bits: int, count: int) -> U8 | int:
    return 1 << (bits - 1) if packed is None else unpack_lsb(packed, bits, count)


def _onnx(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    if "B" not in parts:
        raise InexactError("only MatMulNBits has a bridge; QDQ and 8-bit weights are stored the other way round")
    codes = unpack_lsb(parts["B"].reshape(tensor.rows, -1), bits, tensor.shape[-1])
    scale = _float32(parts["scales"])
    return _integer(tensor, codes, scale, _packed_zeros(parts.get("zero_points"), bits, scale.shape[1]))


def _olive(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    if parts["scales"].dtype != np.float32:
        raise InexactError("its values are rounded to the type of its scales, which have to be float32 to be a lattice")
    codes = unpack_lsb(parts["qweight"], bits, tensor.shape[-1])
    return _integer(tensor, codes, parts["scales"], _packed_zeros(parts.get("qzeros"), bits, parts["scales"].shape[1]))


def _openvino(tensor: QuantizedTensor) -> Lattice:
    parts, precision = tensor.parts, tensor.precision
    rows, cols = _shape(tensor)
    if precision.kind not in ("int8", "int4"):
        raise InexactError(f"{precision} is no lattice that has a bridge")
    packed = parts["codes"].view(np.uint8)
    codes = unpack_lsb(packed.reshape(-1), precision.bits, rows * cols).reshape(rows, cols)
    scale = parts["scale"].astype(np.float32).reshape(rows, -1)
    half = 1 << (precision.bits - 1)
    if precision.symmetric:  # two's complement to offset
        return _integer(tensor, codes ^ np.uint8(half), scale, half)
    zero = parts["zero_point"].view(np.uint8).reshape(-1)
    return _integer(tensor, codes, scale, unpack_lsb(zero, precision.bits, scale.size).reshape(scale.shape))


def _float32(values: npt.NDArray[Any]) -> F32:
    return bfloat16_to_float32(values) if values.dtype == np.uint16 else to_float32(values)


def _ggml(tensor: QuantizedTensor) -> Lattice:
    kind = tensor.precision.kind
    if kind not in _GGML:
        raise InexactError(f"{tensor.precision} is no lattice that has a bridge")
    blocks = np.ascontiguousarray(tensor.parts["blocks"]).reshape(-1).view(TYPES[kind].LAYOUT)
    codes, scale, zero, bias, group = _GGML[kind](blocks)
    rows = tensor.rows
    return Lattice(
        codes.reshape(rows, -1),
        scale.reshape(rows, -1),
        group,
        zero=None if zero is None else np.full((rows, scale.size // rows), zero, np.int16),
        bias=None if bias is None else bias.reshape(rows, -1),
    )


_Taken = tuple[U8, F32, int | None, F32 | None, int]


def _nibbles(blocks: Blocks) -> U8:
    codes: U8 = split(blocks["qs"], 4).reshape(-1, 32)
    return codes


def _five_bits(blocks: Blocks) -> U8:
    return _nibbles(blocks) | unpack_lsb(np.ascontiguousarray(blocks["qh"]).view(np.uint8), 1, 32) << np.uint8(4)


def _d(blocks: Blocks, field: str = "d") -> F32:
    scale: F32 = blocks[field].astype(np.float32)
    return scale


def _q8_0(blocks: Blocks) -> _Taken:
    return blocks["qs"].view(np.uint8) ^ np.uint8(128), _d(blocks), 128, None, 32


def _sixbit_lattice(blocks: Blocks, codes: U8) -> _Taken:
    step, offset = _sixbit.steps_and_offsets(blocks)
    return codes, step, None, -offset, 32


def _q4_k(blocks: Blocks) -> _Taken:
    return _sixbit_lattice(blocks, split(blocks["qs"].reshape(-1, 32), 4))


def _q5_k(blocks: Blocks) -> _Taken:
    low = split(blocks["qs"].reshape(-1, 32), 4).reshape(-1, 8, 32)
    return _sixbit_lattice(blocks, low | split(blocks["qh"], 1) << np.uint8(4))


def _q6_k(blocks: Blocks) -> _Taken:
    codes = split(blocks["ql"].reshape(-1, 64), 4).reshape(-1, 256)
    codes |= split(blocks["qh"].reshape(-1, 32), 2).reshape(-1, 256) << np.uint8(4)
    return codes, _d(blocks)[:, None] * blocks["scales"], q6_k.TOP, None, 16


def _q3_k(blocks: Blocks) -> _Taken:
    codes = split(blocks["qs"].reshape(-1, 32), 2).reshape(-1, 256)
    codes |= split(blocks["hmask"], 1).reshape(-1, 256) << np.uint8(2)
    return codes, _d(blocks)[:, None] * q3_k.unpack_scales(blocks["scales"]), q3_k.TOP, None, 16


_GGML: dict[str, Callable[[Blocks], _Taken]] = {
    "Q4_0": lambda blocks: (_nibbles(blocks), _d(blocks), 8, None, 32),
    "Q4_1": lambda blocks: (_nibbles(blocks), _d(blocks), None, _d(blocks, "m"), 32),
    "Q5_0": lambda blocks: (_five_bits(blocks), _d(blocks), 16, None, 32),
    "Q5_1": lambda blocks: (_five_bits(blocks), _d(blocks), None, _d(blocks, "m"), 32),
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q3_K": _q3_k,
}
_READERS: dict[str, Callable[[QuantizedTensor], Lattice]] = {
    "affine": _affine,
    "ggml": _ggml,
    "mlx": _mlx,
    "olive": _olive,
    "onnx": _onnx,
    "openvino": _openvino,
}


def _minifloats(tensor: QuantizedTensor) -> Minifloats:
    parts, (rows, cols) = tensor.parts, _shape(tensor)
    if tensor.precision.convention == "ggml":
        blocks = np.ascontiguousarray(parts["blocks"]).reshape(rows, -1, 17)
        codes = split(np.ascontiguousarray(blocks[..., 1:]).reshape(-1, 16), 4)
        return Minifloats(codes.reshape(rows, cols), blocks[..., 0], 4)
    bits = tensor.precision.bits
    if tensor.precision.convention == "mlx":
        packed = np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8)
        return Minifloats(unpack_lsb(packed, bits, cols), parts["scales"].reshape(rows, -1), bits)
    packed = parts["codes"].view(np.uint8).reshape(rows, -1)
    return Minifloats(unpack_lsb(packed, bits, cols), parts["scale"].view(np.uint8).reshape(rows, -1), bits)
