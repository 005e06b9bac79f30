"""Convert a stored tensor to its lattice, or to its small floats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.bridges import _minifloats, _read_ggml
from edgekit.bridges._lattice import Lattice, Minifloats
from edgekit.errors import InexactError
from edgekit.numerics.bits import unpack_lsb
from edgekit.numerics.smallfloats import bfloat16_to_float32, to_float32
from edgekit.reference.openvino import _layout
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, U8, Array

_SIGN = np.uint8(128)


def read(tensor: QuantizedTensor) -> Lattice | Minifloats:
    """Return the lattice, or the small floats, that a tensor's parts represent.

    Raises:
        InexactError: its format is neither.
    """
    if _minifloats.holds(tensor.precision):
        return _minifloats.read(tensor)
    reader = _READERS.get(tensor.precision.convention)
    if reader is None:
        raise InexactError(f"{tensor.precision} is not a lattice of evenly spaced levels")
    return reader(tensor)


def _integer(tensor: QuantizedTensor, codes: U8, scale: F32, zero: Array | int) -> Lattice:
    zeros = np.broadcast_to(np.asarray(zero, np.int16), scale.shape)
    return Lattice(codes, scale, tensor.precision.block or tensor.shape[-1], zero=zeros)


def _affine(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    codes = unpack_lsb(parts["codes"], bits, tensor.shape[-1])
    scale = np.broadcast_to(parts["scale"], (tensor.rows, parts["scale"].shape[1]))
    if tensor.precision.symmetric and bits == 1:  # -1 and +1
        return _integer(tensor, codes << np.uint8(1), scale, 1)
    zero = parts["zero_point"] if "zero_point" in parts else 1 << (bits - 1)
    return _integer(tensor, codes, scale, zero)


def _mlx(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    if parts["scales"].dtype != np.float32:
        raise InexactError("its values are rounded to the type of its scales, which must be float32 to be a lattice")
    packed = np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8)
    codes = unpack_lsb(packed, bits, tensor.shape[-1])
    return Lattice(codes, parts["scales"], tensor.precision.block or 0, bias=parts["biases"])


def _packed_zeros(packed: U8 | None, bits: int, count: int) -> U8 | int:
    return 1 << (bits - 1) if packed is None else unpack_lsb(packed, bits, count)


def _onnx(tensor: QuantizedTensor) -> Lattice:
    if tensor.precision.kind == "qdq_int4":
        return _onnx_qdq(tensor)
    if tensor.precision.granularity != "group":
        return _onnx_bytes(tensor)
    parts, bits = tensor.parts, tensor.precision.bits
    codes = unpack_lsb(parts["B"].reshape(tensor.rows, -1), bits, tensor.shape[-1])
    scale = _float32(parts["scales"])
    return _integer(tensor, codes, scale, _packed_zeros(parts.get("zero_points"), bits, scale.shape[1]))


def _onnx_qdq(tensor: QuantizedTensor) -> Lattice:
    """Read codes stored as [in, out], in two's complement if symmetric."""
    parts, cols = tensor.parts, tensor.shape[-1]
    codes = unpack_lsb(parts["codes"], 4, cols * tensor.rows).reshape(cols, tensor.rows).T
    scale = _float32(parts["scale"])
    zero = _packed_zeros(parts.get("zero_point"), 4, scale.size)
    zeros = np.broadcast_to(np.asarray(zero).reshape(-1, 1 if np.ndim(zero) == 0 else tensor.rows), scale.shape)
    sign = np.uint8(8 if tensor.precision.symmetric else 0)
    return _integer(tensor, np.ascontiguousarray(codes ^ sign), np.ascontiguousarray(scale.T), zeros.T)


def _onnx_bytes(tensor: QuantizedTensor) -> Lattice:
    """Read 8-bit codes, signed or unsigned, with one scale for each row or for the tensor."""
    parts = tensor.parts
    codes, zero = parts["codes"].reshape(tensor.rows, -1), parts["zero_point"].astype(np.int16).reshape(-1, 1)
    if codes.dtype == np.int8:
        codes, zero = codes.view(np.uint8) ^ _SIGN, zero + np.int16(128)
    scale = np.broadcast_to(_float32(parts["scale"]).reshape(-1, 1), (tensor.rows, 1))
    return _integer(tensor, codes, scale, zero)


def _olive(tensor: QuantizedTensor) -> Lattice:
    parts, bits = tensor.parts, tensor.precision.bits
    if parts["scales"].dtype != np.float32:
        raise InexactError("its values are rounded to the type of its scales, which must be float32 to be a lattice")
    codes = unpack_lsb(parts["qweight"], bits, tensor.shape[-1])
    return _integer(tensor, codes, parts["scales"], _packed_zeros(parts.get("qzeros"), bits, parts["scales"].shape[1]))


def _openvino(tensor: QuantizedTensor) -> Lattice:
    parts, precision = tensor.parts, tensor.precision
    rows, cols = tensor.rows, tensor.shape[-1]
    if not precision.kind.startswith("int"):
        raise InexactError(f"{precision} is not a lattice with a bridge")
    packed = parts["codes"].view(np.uint8).reshape(-1)
    codes = _layout.unpack(packed, precision.bits, rows * cols).reshape(rows, cols)
    scale = parts["scale"].astype(np.float32).reshape(rows, -1)
    half = 1 << (precision.bits - 1)
    if precision.kind in ("int3", "int2"):
        return _integer(tensor, codes, scale, half)
    if precision.symmetric:  # two's complement to offset
        return _integer(tensor, codes ^ np.uint8(half), scale, half)
    zero = parts["zero_point"].view(np.uint8).reshape(-1)
    return _integer(tensor, codes, scale, unpack_lsb(zero, precision.bits, scale.size).reshape(scale.shape))


def _float32(values: Array) -> F32:
    return bfloat16_to_float32(values) if values.dtype == np.uint16 else to_float32(values)


_READERS: dict[str, Callable[[QuantizedTensor], Lattice]] = {
    "affine": _affine,
    "ggml": _read_ggml.read,
    "mlx": _mlx,
    "olive": _olive,
    "onnx": _onnx,
    "openvino": _openvino,
}
