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
        tensor: the source.
        precision: the target's precision, or its name.
        exact: True refuses a conversion that changes a value. False rounds scales that the target cannot represent, and
            decodes and encodes again if the codes cannot be converted.

    Returns:
        The tensor in the target's precision; ``backend`` is ``bridge`` if the codes were converted.

    Raises:
        InexactError: `exact`, and a value would change; names the part that the target cannot represent.
        ShapeError: the rows are not a multiple of the target's block.
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
    """Return the decoded values in a plain float format."""
    rows = tensor.dequantize().reshape(tensor.rows, -1)
    with np.errstate(over="ignore"):  # values that become infinite are detected by the comparison
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
