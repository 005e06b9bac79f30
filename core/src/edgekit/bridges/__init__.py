"""Lossless bridges: where two formats can hold the same values, codes are carried over, never quantized again.

Many formats are lattices: evenly spaced levels, a scale (and an offset) for each group of a row. Others are small
floats under a scale. `read` takes such a format apart into a `Lattice` or into `Minifloats`, `write` puts one together,
and `relation` says beforehand, for any ordered pair, whether the codes carry over exactly, where the tensor at hand
allows it, within a bound, or not at all. Whatever `transcode` calls exact it has
compared: the decoded values of both sides are equal, 0 ULP.
"""

from __future__ import annotations

import attrs
import numpy as np

from edgekit.bridges._lattice import Carry, Lattice, Minifloats, Relation
from edgekit.bridges._read import read
from edgekit.bridges._relation import lattices, relation
from edgekit.bridges._write import write
from edgekit.encoding._codecs import encode, refuse_shape
from edgekit.errors import InexactError
from edgekit.precision import Precision, find_precision
from edgekit.reference import Parts, reference
from edgekit.tensor import QuantizedTensor

__all__ = ["Carry", "Lattice", "Minifloats", "Relation", "lattices", "read", "relation", "transcode", "write"]


def transcode(tensor: QuantizedTensor, precision: str | Precision, *, exact: bool = True) -> QuantizedTensor:
    """Store a quantized tensor in another precision.

    Args:
        tensor: what is there.
        precision: what is wanted, or its name.
        exact: True refuses whatever changes a value. False rounds scales where only they do not fit, and where
            codes do not carry over decodes and encodes again.

    Returns:
        The tensor in the wanted precision; ``backend`` is ``bridge`` where codes were carried over.

    Raises:
        InexactError: `exact`, and a value would change; says which part does not fit.
        ShapeError: the wanted precision's blocks do not divide the rows.
        UnknownPrecisionError: no such precision.
    """
    target = find_precision(precision)
    if target == tensor.precision:
        return tensor
    refuse_shape(tensor.shape, target)
    declared = relation(tensor.precision, target)
    if declared.carry is Carry.NO and exact:
        raise InexactError(_refusal(tensor, target, declared.why))
    if declared.carry is Carry.NO or (target.convention == "float" and not exact):
        return _again(tensor, target)
    try:
        parts = _decoded(tensor, target) if target.convention == "float" else write(read(tensor), target, exact)
        carried = attrs.evolve(tensor, parts=parts, precision=target, backend="bridge")
    except InexactError as error:
        if exact:
            raise InexactError(_refusal(tensor, target, str(error))) from error
        return _again(tensor, target)
    if exact:
        _compare(tensor, carried)
    return carried


def _decoded(tensor: QuantizedTensor, target: Precision) -> Parts:
    """The decoded values in a plain float format."""
    rows = tensor.dequantize().reshape(tensor.rows, -1)
    with np.errstate(over="ignore"):  # what becomes infinite is found by comparing
        return reference(target).encode(rows, target)


def _again(tensor: QuantizedTensor, target: Precision) -> QuantizedTensor:
    return attrs.evolve(encode(tensor.dequantize(), target), name=tensor.name)


def _compare(tensor: QuantizedTensor, carried: QuantizedTensor) -> None:
    before, after = tensor.dequantize(), carried.dequantize()
    if not np.array_equal(before, after):
        row, column = np.argwhere(before.reshape(-1, before.shape[-1]) != after.reshape(-1, before.shape[-1]))[0]
        why = f"row {row}, column {column} would change by float32 rounding"
        raise InexactError(_refusal(tensor, carried.precision, why))


def _refusal(tensor: QuantizedTensor, target: Precision, why: str) -> str:
    name = tensor.name or "tensor"
    return f"{name} cannot go from {tensor.precision} to {target} unchanged: {why}; exact=False rounds or requantizes"
