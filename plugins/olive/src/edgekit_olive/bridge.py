"""Converts quantized tensors of other formats to MatMulNBits without decoding them; no value changes.

    from                                              to
    ggml:Q4_0, Q3_K                                   onnx:int4-sym-g32, g16
    ggml:Q8_0, Q5_0, Q6_K, IQ4_NL, IQ4_XS, MXFP4      onnx:int8-sym-g32; g16 for Q6_K
    ggml:TQ1_0, Q1_0; TQ2_0, Q2_0                     onnx:int2-sym-g256, g128; int4-sym-g256, g64
    ggml:Q4_1, Q4_K                                   onnx:offset4-g32
    ggml:Q5_1, Q5_K                                   onnx:offset5-g32
    ggml:Q2_K                                         onnx:offset2-g16
    openvino:int3-sym-g<n>, mxfp4                     onnx:int4-sym-g<n>, int8-sym-g32
    openvino:int4-sym-g<n>, mlx:int4-g<n>             onnx's of the same group, if every value stays the same

If `edgekit.bridges.relation` is exact for two precisions, codes are converted row by row. If it depends on the tensor's
values, the conversion is tried once on the whole tensor, except for ggml's types, whose scales and offsets never suit.
Lattices with a real offset become `edgekit_olive.offset`. All other tensors are decoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import attrs
import numpy as np

from edgekit.bridges import Carry, Lattice, first_exact, read, relation
from edgekit.errors import InexactError, UnknownPrecisionError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import EncodedTensor, QuantizedTensor
from edgekit.typing import Array
from edgekit_olive.dialect import portable_fault
from edgekit_olive.elements import storable
from edgekit_olive.offset import SLOTS, stored

#: Blocks of MatMulNBits, the largest first: a source's groups may be joined of several smaller ones.
_BLOCKS = (256, 128, 64, 32, 16)
#: ggml's types with a real offset -> bits of a code, and the block.
_OFFSETS = {"Q2_K": (2, 16), "Q4_1": (4, 32), "Q4_K": (4, 32), "Q5_1": (5, 32), "Q5_K": (5, 32)}


def carried(tensor: EncodedTensor, fused: bool) -> EncodedTensor | None:
    """Return a tensor's values in a precision that a graph stores; None if they have to be decoded.

    Args:
        tensor: what a file holds.
        fused: whether the graph may use ONNX Runtime's own operators.

    Returns:
        The tensor in the new precision, its codes converted as they are read; ``origin`` is the file's precision.
    """
    targets = [each for each in candidates(tensor) if fused or not portable_fault(each, tensor.shape)]
    found = first_exact(tensor, targets) or (_with_offsets(tensor) if fused else None)
    return found and attrs.evolve(found, origin=tensor.origin or tensor.precision)


def candidates(tensor: EncodedTensor) -> Iterator[Precision]:
    """Yield ONNX Runtime's precisions that may be able to hold a tensor's values, the smallest first."""
    source = tensor.precision
    for precision in (*_alike(source), *_lossless(source)):
        if storable(precision) and fits(precision, tensor.shape):
            yield precision


def _alike(source: Precision) -> Iterator[Precision]:
    """Yield the precisions of the same width and blocks, which may depend on the values."""
    if source.convention == "ggml" or source.bits not in (2, 4, 8):
        return
    where = "channel" if source.granularity == "channel" else f"g{source.block or 32}"
    for kind in ("sym", "asym"):
        with contextlib.suppress(UnknownPrecisionError):
            yield find_precision(f"onnx:int{source.bits}-{kind}-{where}")


def _lossless(source: Precision) -> Iterator[Precision]:
    """Yield the precisions without zero points that hold all values of the source's precision."""
    for bits in (2, 4, 8):
        for precision in (find_precision(f"onnx:int{bits}-sym-g{block}") for block in _BLOCKS):
            if relation(source, precision).carry is Carry.EXACT:
                yield precision


def _with_offsets(tensor: EncodedTensor) -> EncodedTensor | None:
    """Return the tensor in blocks with a real offset; None if its values are no such lattice."""
    source = tensor.precision
    bits, block = _OFFSETS.get(source.kind, (0, 0)) if source.convention == "ggml" else (source.bits, source.block)
    if source.convention not in ("ggml", "mlx") or bits not in SLOTS or not _is_lattice(tensor):
        return None
    precision = find_precision(f"onnx:offset{bits}-g{block}")
    if not fits(precision, tensor.shape):
        return None

    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        given = tensor.read_parts(start, stop)
        rows = QuantizedTensor(given, source, (stop - start, tensor.shape[-1]), tensor.name)
        lattice = read(rows)
        assert isinstance(lattice, Lattice)
        assert lattice.bias is not None
        parts = stored(lattice.codes, lattice.scale, lattice.bias, bits)
        made = attrs.evolve(rows, parts=parts, precision=precision)
        if not np.array_equal(made.dequantize(), rows.dequantize(), equal_nan=True):
            raise InexactError(f"{tensor.name} cannot go from {source} to {precision} unchanged; decode it first")
        return parts

    nbytes = int(tensor.size * precision.bits_per_weight) // 8
    return attrs.evolve(tensor, precision=precision, nbytes=nbytes, read_parts=read_parts)


def _is_lattice(tensor: EncodedTensor) -> bool:
    """Return whether a tensor has evenly spaced levels with a real offset, which its first row shows."""
    if not tensor.rows or not tensor.sliceable:
        return False
    first = QuantizedTensor(tensor.read_parts(0, 1), tensor.precision, (1, tensor.shape[-1]), tensor.name)
    try:
        lattice = read(first)
    except InexactError:
        return False
    return isinstance(lattice, Lattice) and lattice.bias is not None


__all__ = ["candidates", "carried"]
