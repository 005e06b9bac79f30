"""The constants of a graph that store a tensor in one of edgekit's precisions.

    precision                     constants                                used by
    float:F32, F16, BF16          NAME                                     MatMul, Gather; F16 and BF16 cast to F32
    onnx:int2|int4|int8-…-g<n>    NAME.B  NAME.scales  [NAME.zero_points]  MatMulNBits, GatherBlockQuantized
    onnx:kquant4|kquant8-g<n>     as int4, int8-asym-g<n>                  the same
    onnx:hqq2|hqq4-g<n>           the same, NAME.zero_points in floats     MatMulNBits alone
    onnx:offset2|4|5-g<n>         NAME.B  NAME.scales  NAME.offsets        MatMulNBits, and a MatMul with the offsets
    onnx:int8|uint8-…-channel     NAME.codes  NAME.scale  NAME.zero_point  DequantizeLinear
    onnx:int8|uint8-…-tensor      the same                                 DequantizeLinear
    onnx:qdq_int4-…-g<n>          NAME.codes  NAME.scale  [NAME.zero_point] DequantizeLinear

The bytes are those of the reference's parts: see `edgekit.reference.onnx`.

Source: onnx 1.23.2, ``onnx.proto``; onnxruntime 1.32.0, its contrib operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from edgekit.formats import part_layouts
from edgekit.precision import Precision
from edgekit.recipe import Slot, fits
from edgekit.tensor import EncodedTensor
from edgekit_olive import hqq, offset

#: `TensorProto.DataType` by edgekit's name of an element type, for types whose elements are whole bytes.
ELEMENTS: Mapping[str, str] = {
    "float32": "FLOAT",
    "uint8": "UINT8",
    "int8": "INT8",
    "uint16": "UINT16",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "float16": "FLOAT16",
    "float64": "DOUBLE",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bfloat16": "BFLOAT16",
    "float8_e4m3fn": "FLOAT8E4M3FN",
    "float8_e5m2": "FLOAT8E5M2",
    "float8_e8m0fnu": "FLOAT8E8M0",
}
#: Bits of types whose elements share bytes.
PACKED: Mapping[str, int] = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Roles of matrices whose rows are looked up.
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
#: MatMulNBits in onnxruntime's CPU provider: supported bits -> the largest block.
_LARGEST = {2: 256, 4: 512, 8: 512}


@attrs.frozen
class Stored:
    """A constant beside the graph.

    Attributes:
        name: name of the initializer.
        element: name of its `TensorProto.DataType`.
        shape: its shape in elements, outermost dimension first.
        nbytes: its bytes in the file.
    """

    name: str
    element: str
    shape: tuple[int, ...]
    nbytes: int


def storable(precision: Precision) -> bool:
    """Return whether a graph can store a precision and the CPU provider can compute with it."""
    if precision.convention == "float":
        return precision.kind in FLOATS
    if precision.convention != "onnx":
        return False
    if is_blockwise(precision):
        assert precision.block is not None
        return precision.block <= _LARGEST.get(code_bits(precision), 0)
    return True


def is_blockwise(precision: Precision) -> bool:
    """Return whether MatMulNBits takes a precision."""
    return precision.convention == "onnx" and precision.granularity == "group" and precision.kind != "qdq_int4"


def is_hqq(precision: Precision) -> bool:
    """Return whether a precision has zero points in floats."""
    return precision.convention == "onnx" and precision.kind in hqq.KINDS


def has_offsets(precision: Precision) -> bool:
    """Return whether a precision has a real offset for each block, which a second product adds."""
    return precision.convention == "onnx" and precision.kind in offset.KINDS


def code_bits(precision: Precision) -> int:
    """Return the bits in which MatMulNBits stores a code of a blockwise precision."""
    return offset.SLOTS[precision.bits] if has_offsets(precision) else precision.bits


def stored_parts(slot: Slot, precision: Precision) -> dict[str, Stored]:
    """Return the constants of a tensor, by the reference's names of its parts; a float tensor has one, ``values``."""
    name, shape = slot.name, slot.shape
    if precision.convention == "float":
        dtype = FLOATS[precision.kind]
        width = 4 if dtype == "float32" else 2
        return {"values": Stored(name, ELEMENTS[dtype], shape, width * math.prod(shape))}
    layouts = part_layouts(precision, shape) or {}
    parts = {}
    for key, layout in layouts.items():
        dtype = _follows(slot, precision, layout.dtype)
        nbytes = math.prod(layout.shape) * _WIDTHS.get(dtype, 1)
        parts[key] = Stored(f"{name}.{key}", ELEMENTS[dtype], layout.shape, nbytes)
    return {key: _as_stored(key, part, precision, shape) for key, part in parts.items()}


_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


def _follows(slot: Slot, precision: Precision, dtype: str) -> str:
    """Return the dtype of a part: scales have the source's dtype if it has 2 bytes; a row's scale only if float16."""
    tensor = slot.tensor
    if isinstance(tensor, EncodedTensor):
        return _own(tensor, dtype) if tensor.precision == precision else dtype
    if has_offsets(precision):
        return dtype
    narrow = ("float16",) if precision.granularity != "group" or is_hqq(precision) else ("float16", "bfloat16")
    return tensor.dtype if dtype == "float32" and tensor.dtype in narrow else dtype


def _own(tensor: EncodedTensor, dtype: str) -> str:
    """Return the dtype of the scales of an encoded tensor."""
    if dtype != "float32" or not tensor.rows:
        return dtype
    sample = tensor.read_parts(0, 1 if tensor.sliceable else tensor.rows)
    return next((part.dtype.name for key, part in sample.items() if key.startswith("scale")), dtype)


def _as_stored(key: str, part: Stored, precision: Precision, shape: tuple[int, ...]) -> Stored:
    """Return a part's constant with the element type and shape that the operator expects."""
    rows, cols = math.prod(shape[:-1]), shape[-1]
    if precision.kind == "qdq_int4":
        code = "INT4" if precision.symmetric else "UINT4"
        assert precision.block is not None
        blocks = -(-cols // precision.block)
        return attrs.evolve(
            part,
            element=code if key != "scale" else part.element,
            shape=(cols, rows) if key == "codes" else (blocks, rows),
        )
    if key == "codes":
        return attrs.evolve(part, shape=shape)
    return part


def can_hold(precision: Precision, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of that shape can be stored in that precision.

    QDQ int4 lies transposed, so that the experts of a stack are not apart in it.
    """
    if not storable(precision) or (precision.kind == "qdq_int4" and len(shape) > 2):
        return False
    return precision.convention == "float" or fits(precision, shape)


__all__ = [
    "ELEMENTS",
    "EMBEDDINGS",
    "FLOATS",
    "PACKED",
    "Stored",
    "can_hold",
    "code_bits",
    "has_offsets",
    "is_blockwise",
    "is_hqq",
    "storable",
    "stored_parts",
]
