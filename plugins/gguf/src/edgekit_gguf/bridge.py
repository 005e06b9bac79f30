"""Tensors of other frameworks that are quantized already, carried into GGUF block by block where no value changes.

    from                                          to
    mlx:int4-g32 …, openvino:int4-sym-g64, onnx   Q4_0, else Q4_1
    the same of 5 and 8 bits                      Q5_0, else Q5_1; Q8_0
    mlx:mxfp4, openvino:mxfp4                     MXFP4
    mlx:nvfp4                                     NVFP4
    affine, and what other libraries pack         the smallest type that holds it (`edgekit.bridges.carried_over`)

What depends on the tensor is tried on all of it, once; what a block cannot hold unchanged is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit import bridges
from edgekit.bridges import Carry, relation, transcode
from edgekit.errors import InexactError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor, Tensor
from edgekit.typing import Array

#: ggml's types of a width, the smaller first.
_TYPES = {4: ("Q4_0", "Q4_1"), 5: ("Q5_0", "Q5_1"), 8: ("Q8_0",)}
_SMALL = {"mxfp4": "MXFP4", "nvfp4": "NVFP4"}


def carried_over(tensor: AnyTensor) -> AnyTensor:
    """The tensor in blocks that hold the same values, or as it is where it is not quantized or no blocks do."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "ggml":
        return tensor
    if tensor.precision.convention in ("affine", "packed"):
        return bridges.carried_over(tensor, ("ggml",)) or tensor
    for precision in _candidates(tensor):
        carry = relation(tensor.precision, precision).carry
        if carry is Carry.EXACT or (carry is not Carry.NO and _holds(tensor, precision)):
            return _carried(tensor, precision)
    return tensor


def _candidates(tensor: EncodedTensor) -> list[Precision]:
    own = tensor.precision
    kinds = (_SMALL[own.kind],) if own.kind in _SMALL else _TYPES.get(own.bits, ()) if "int" in own.kind else ()
    found = [find_precision(f"ggml:{kind}") for kind in kinds]
    return [precision for precision in found if fits(precision, tensor.shape)]


def _holds(tensor: EncodedTensor, precision: Precision) -> bool:
    try:
        transcode(tensor.read(), precision)
    except InexactError:
        return False
    return True


def _carried(tensor: EncodedTensor, precision: Precision) -> EncodedTensor:
    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        if not tensor.sliceable:
            blocks = transcode(tensor.read(), precision).parts
            return {name: part[start:stop] for name, part in blocks.items()}
        shape = (stop - start, tensor.shape[-1])
        rows = QuantizedTensor(tensor.read_parts(start, stop), tensor.precision, shape, tensor.name)
        return transcode(rows, precision).parts

    nbytes = int(tensor.size * precision.bits_per_weight) // 8
    return attrs.evolve(
        tensor, precision=precision, nbytes=nbytes, read_parts=read_parts, sliceable=True, origin=tensor.precision
    )


__all__ = ["carried_over"]
