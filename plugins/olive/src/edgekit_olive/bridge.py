"""Converts quantized tensors of other formats to MatMulNBits without decoding them, where that changes no value.

    from                                    to
    ggml:Q4_0, Q4_1, Q8_0                   onnx:int4-sym-g32, int4-asym-g32, int8-sym-g32
    openvino:int4-sym-g<n>, mlx:int4-g<n>   onnx's of the same group, if every value stays the same

If `edgekit.bridges.relation` is exact for two precisions, codes are converted row by row. If it depends on the tensor's
values, the conversion is tried once on the whole tensor. All other tensors are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.errors import UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import EncodedTensor
from edgekit_olive.elements import storable


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """Yield ONNX Runtime's precisions that may be able to hold a tensor's values, the likeliest first."""
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
