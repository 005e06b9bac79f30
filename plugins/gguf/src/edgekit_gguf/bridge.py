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
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
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
    carried = bridges.first_exact(tensor, _candidates(tensor))
    return tensor if carried is None else attrs.evolve(_by_rows(carried), origin=tensor.precision)


def _by_rows(tensor: EncodedTensor) -> EncodedTensor:
    """Blocks share no bytes between rows: where the source's do, all of them are read for each piece."""
    if tensor.sliceable:
        return tensor

    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        return {name: part[start:stop] for name, part in tensor.read_parts(0, tensor.rows).items()}

    return attrs.evolve(tensor, read_parts=read_parts, sliceable=True)


def _candidates(tensor: EncodedTensor) -> list[Precision]:
    source = tensor.precision
    kinds = (
        (_SMALL[source.kind],) if source.kind in _SMALL else _TYPES.get(source.bits, ()) if "int" in source.kind else ()
    )
    precisions = [find_precision(f"ggml:{kind}") for kind in kinds]
    return [precision for precision in precisions if fits(precision, tensor.shape)]


__all__ = ["carried_over"]
