"""Converts quantized tensors of other formats to OpenVINO's without decoding them, where that changes no value.

    from                           to
    ggml:Q4_0, Q8_0                int4-sym-g32, int8-sym-g32
    ggml:MXFP4, mlx:mxfp4, mxfp8   mxfp4, mxfp8
    onnx:int4-sym-g<size> ...      the same of openvino, if every scale of the tensor is a float16

If `edgekit.bridges.relation` is exact for two precisions, codes are converted row by row. If it depends on the tensor's
values, the conversion is tried once on the whole tensor. All other tensors are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from edgekit.bridges import first_exact
from edgekit.errors import UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit_openvino.elements import stored_parts


def carried_over(tensor: AnyTensor) -> AnyTensor:
    """Return the tensor in a precision of OpenVINO's that holds the same values; if there is none, unchanged."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "openvino":
        return tensor
    carried = first_exact(tensor, candidates(tensor))
    return tensor if carried is None else attrs.evolve(carried, nbytes=_nbytes(carried))


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """Yield OpenVINO's precisions that may be able to hold a tensor's values, the likeliest first."""
    source = tensor.precision
    if source.kind.lower() in ("mxfp4", "mxfp8"):
        yield find_precision(f"openvino:{source.kind.lower()}")
        return
    where = f"g{source.block or 32}" if source.granularity != "channel" else "channel"
    if source.convention == "ggml":
        where = "g32"
    for stem in (f"int{source.bits}-sym", f"int{source.bits}-asym"):
        try:
            precision = find_precision(f"openvino:{stem}-{where}")
        except UnknownPrecisionError:
            continue
        if fits(precision, tensor.shape):
            yield precision


def _nbytes(tensor: EncodedTensor) -> int:
    return sum(stored.nbytes for stored in stored_parts(tensor.name, tensor.precision, tensor.shape).values())


__all__ = ["candidates", "carried_over"]
