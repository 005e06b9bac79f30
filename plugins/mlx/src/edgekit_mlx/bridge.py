"""Tensors that are quantized already, carried into MLX code by code where that changes no value.

    from                          to
    ggml:Q4_0, Q4_1, Q5_0 …, Q8_0 int<b>-g32, with float32 scales: what a float16 scale gives is not always a float16
    ggml:MXFP4, openvino:mxfp4    mxfp4, mxfp8
    openvino:int4-sym-g64 …       int<b>-g<size>
    onnx:int4-sym-g32 …           int<b>-g<size>

What `edgekit.bridges.relation` calls exact is carried row by row; what it makes depend on the tensor is tried on all of
it, once. Everything else is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import attrs

from edgekit.bridges import Carry, relation, transcode
from edgekit.errors import InexactError, UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor, Tensor
from edgekit.typing import Array
from edgekit_mlx.modes import FLOATS, GROUPS


def carried_over(tensor: AnyTensor) -> AnyTensor:
    """The tensor in a precision that MLX holds: its own, one that holds the same values, or decoded float32."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "mlx":
        return tensor
    for precision in candidates(tensor):
        carry = relation(tensor.precision, precision).carry
        if carry is Carry.EXACT or (carry is not Carry.NO and _holds(tensor, precision)):
            return _carried(tensor, precision)
    return _decoded(tensor)


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """MLX's precisions that might hold a tensor's values, the likeliest first."""
    own = tensor.precision
    if own.kind.lower() in FLOATS:
        yield find_precision(f"mlx:{own.kind.lower()}")
        return
    sizes = (own.block,) if own.convention != "ggml" and own.block in GROUPS else (32,) if own.block else GROUPS[::-1]
    for size in sizes:
        try:
            precision = find_precision(f"mlx:int{own.bits}-g{size}")
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

    assert precision.block is not None
    groups = math.prod(tensor.shape) // precision.block
    scales = groups * (1 if precision.kind in FLOATS else 8)  # a scale and a bias, float32
    nbytes = math.prod(tensor.shape) * precision.bits // 8 + scales
    sliceable = tensor.sliceable and precision.rowwise
    return attrs.evolve(tensor, precision=precision, nbytes=nbytes, read_parts=read_parts, sliceable=sliceable)


def _decoded(tensor: EncodedTensor) -> Tensor:
    def read_rows(start: int, stop: int) -> Array:
        return tensor.float32(start, stop)

    return Tensor(tensor.name, tensor.shape, "float32", read_rows)


__all__ = ["candidates", "carried_over"]
