"""Store a quantized tensor in another precision without changing a value."""

from __future__ import annotations

import attrs
import numpy as np

from edgekit.bridges._lattice import Carry
from edgekit.bridges._read import read
from edgekit.bridges._relation import relation
from edgekit.bridges._write import write
from edgekit.encoding._codecs import encode, refuse_shape
from edgekit.errors import InexactError
from edgekit.precision import Precision, find_precision
from edgekit.reference import Parts, reference
from edgekit.tensor import QuantizedTensor


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
    wanted = find_precision(precision)
    if wanted == tensor.precision:
        return tensor
    refuse_shape(tensor.shape, wanted)
    declared = relation(tensor.precision, wanted)
    if declared.carry is Carry.NO and exact:
        raise InexactError(_refusal(tensor, wanted, declared.why))
    if declared.carry is Carry.NO or (wanted.convention == "float" and not exact):
        return _again(tensor, wanted)
    try:
        parts = _decoded(tensor, wanted) if wanted.convention == "float" else write(read(tensor), wanted, exact)
        carried = attrs.evolve(tensor, parts=parts, precision=wanted, backend="bridge")
    except InexactError as error:
        if exact:
            raise InexactError(_refusal(tensor, wanted, str(error))) from error
        return _again(tensor, wanted)
    if exact:
        _compare(tensor, carried)
    return carried


def _decoded(tensor: QuantizedTensor, wanted: Precision) -> Parts:
    """The decoded values in a plain float format."""
    rows = tensor.dequantize().reshape(tensor.rows, -1)
    with np.errstate(over="ignore"):  # what becomes infinite is found by comparing
        return reference(wanted).encode(rows, wanted)


def _again(tensor: QuantizedTensor, wanted: Precision) -> QuantizedTensor:
    return attrs.evolve(encode(tensor.dequantize(), wanted), name=tensor.name)


def _compare(tensor: QuantizedTensor, carried: QuantizedTensor) -> None:
    before, after = tensor.dequantize(), carried.dequantize()
    if not np.array_equal(before, after):
        row, column = np.argwhere(before.reshape(-1, before.shape[-1]) != after.reshape(-1, before.shape[-1]))[0]
        why = f"row {row}, column {column} would change by float32 rounding"
        raise InexactError(_refusal(tensor, carried.precision, why))


def _refusal(tensor: QuantizedTensor, wanted: Precision, why: str) -> str:
    name = tensor.name or "tensor"
    return f"{name} cannot go from {tensor.precision} to {wanted} unchanged: {why}; exact=False rounds or requantizes"
