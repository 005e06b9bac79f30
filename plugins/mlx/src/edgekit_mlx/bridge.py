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

from collections.abc import Iterator

import attrs

from edgekit.bridges import first_exact
from edgekit.errors import UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit_mlx.modes import FLOATS, GROUPS


def carried_over(tensor: AnyTensor) -> AnyTensor:
    """The tensor in a precision that MLX holds: its own, one that holds the same values, or decoded float32."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "mlx":
        return tensor
    carried = first_exact(tensor, candidates(tensor))
    return tensor.decoded() if carried is None else attrs.evolve(carried, nbytes=_nbytes(carried))


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


def _nbytes(tensor: EncodedTensor) -> int:
    precision = tensor.precision
    assert precision.block is not None
    scale = 1 if precision.kind in FLOATS else 8  # one byte; or a scale and a bias, float32
    return tensor.size * precision.bits // 8 + tensor.size // precision.block * scale


__all__ = ["candidates", "carried_over"]
