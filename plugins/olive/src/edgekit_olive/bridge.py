"""Tensors that are quantized already, carried into MatMulNBits code by code where that changes no value.

    from                                    to
    ggml:Q4_0, Q4_1, Q8_0                   onnx:int4-sym-g32, int4-asym-g32, int8-sym-g32
    openvino:int4-sym-g<n>, mlx:int4-g<n>   onnx's of the same group, where every value stays the same

What `edgekit.bridges.relation` calls exact is carried row by row; what it makes depend on the tensor is tried on all of
it, once. Everything else is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.errors import UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import EncodedTensor
from edgekit_olive.elements import storable


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """ONNX Runtime's precisions that might hold a tensor's values, the likeliest first."""
    source = tensor.precision
    if source.bits not in (2, 4, 8):
        return
    where = "g32" if source.convention == "ggml" else f"g{source.block or 32}"
    where = "channel" if source.granularity == "channel" else where
    for kind in ("sym", "asym"):
        try:
            precision = find_precision(f"onnx:int{source.bits}-{kind}-{where}")
        except UnknownPrecisionError:
            continue
        if storable(precision) and fits(precision, tensor.shape):
            yield precision


__all__ = ["candidates"]
