"""Converts quantized tensors of other formats to MLX's without decoding them, where that changes no value.

    from                          to
    ggml:Q4_0, Q4_1, Q5_0 …, Q8_0 int<b>-g32, with float32 scales: the bias of a float16 scale is not always a float16
    ggml:MXFP4, openvino:mxfp4    mxfp4, mxfp8
    openvino:int4-sym-g64 …       int<b>-g<size>
    onnx:int4-sym-g32 …           int<b>-g<size>

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
from edgekit_mlx.modes import FLOATS, GROUPS


def carried_over(tensor: AnyTensor) -> AnyTensor:
    """Return the tensor in a precision of MLX's that holds the same values; if there is none, unchanged."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "mlx":
        return tensor
    carried = first_exact(tensor, candidates(tensor))
    return tensor if carried is None else attrs.evolve(carried, nbytes=_nbytes(carried))


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """Yield MLX's precisions that may be able to hold a tensor's values, the likeliest first."""
    source = tensor.precision
    if source.kind.lower() in FLOATS:
        yield find_precision(f"mlx:{source.kind.lower()}")
        return
    sizes = (
        (source.block,)
        if source.convention != "ggml" and source.block in GROUPS
        else (32,)
        if source.block
        else GROUPS[::-1]
    )
    for size in sizes:
        try:
            precision = find_precision(f"mlx:int{source.bits}-g{size}")
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
