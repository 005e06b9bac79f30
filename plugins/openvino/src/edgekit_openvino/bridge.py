"""Tensors that are quantized already, carried into the IR code by code where that changes no value.

    from                           to
    ggml:Q4_0, Q8_0                int4-sym-g32, int8-sym-g32
    ggml:MXFP4, mlx:mxfp4, mxfp8   mxfp4, mxfp8
    onnx:int4-sym-g<size> ...      the same of openvino, where every scale is a float16 (asked of the tensor itself)

What `edgekit.bridges.relation` calls exact is carried row by row; what it makes depend on the tensor is tried on all of
it, once. Everything else is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from edgekit.bridges import Carry, relation, transcode
from edgekit.errors import InexactError, UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor, Tensor
from edgekit.typing import Array
from edgekit_openvino.elements import stored_parts


def carried_over(tensor: AnyTensor) -> AnyTensor:
    """The tensor in a precision that an IR holds: its own, one that holds the same values, or decoded float32."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "openvino":
        return tensor
    for precision in candidates(tensor):
        carry = relation(tensor.precision, precision).carry
        if carry is Carry.EXACT or (carry is not Carry.NO and _holds(tensor, precision)):
            return _carried(tensor, precision)
    return _decoded(tensor)


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """OpenVINO's precisions that might hold a tensor's values, the likeliest first."""
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


def _holds(tensor: EncodedTensor, precision: Precision) -> bool:
    try:
        transcode(tensor.read(), precision)
    except InexactError:
        return False
    return True


def _carried(tensor: EncodedTensor, precision: Precision) -> EncodedTensor:
    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        shape = (stop - start, tensor.shape[-1])
        rows = QuantizedTensor(tensor.read_parts(start, stop), tensor.precision, shape, tensor.name)
        return transcode(rows, precision).parts

    nbytes = sum(stored.nbytes for stored in stored_parts(tensor.name, precision, tensor.shape).values())
    sliceable = tensor.sliceable and precision.rowwise
    return attrs.evolve(tensor, precision=precision, nbytes=nbytes, read_parts=read_parts, sliceable=sliceable)


def _decoded(tensor: EncodedTensor) -> Tensor:
    def read_rows(start: int, stop: int) -> Array:
        return tensor.float32(start, stop)

    return Tensor(tensor.name, tensor.shape, "float32", read_rows)


__all__ = ["candidates", "carried_over"]
