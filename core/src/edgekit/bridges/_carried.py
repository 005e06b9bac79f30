"""Tensors in a file that another format holds unchanged: decided from scales and zero points, carried row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import attrs
import numpy as np

from edgekit.bridges._lattice import Carry
from edgekit.bridges._relation import lattices, relation
from edgekit.bridges._transcode import transcode
from edgekit.errors import InexactError
from edgekit.formats._parts import rows_together
from edgekit.numerics.bits import pack_lsb
from edgekit.precision import Precision, catalogue, find_precision, fits
from edgekit.tensor import EncodedTensor, QuantizedTensor
from edgekit.typing import U8, Array

#: Scales that are looked at once.
_SCALES = 1 << 16
#: Elements that are tried at once.
_ELEMENTS = 1 << 18


def carried_over(tensor: EncodedTensor, conventions: Collection[str]) -> EncodedTensor | None:
    """Return a tensor's values in the smallest precision of some conventions that holds them exactly.

    Whether one does is decided from scales and zero points, as if every code occurred; so it does not depend on the
    codes, which are carried when they are read. Only ``affine`` precisions, and those of small floats that other
    libraries pack, are looked at.

    Args:
        tensor: what a file holds.
        conventions: names of those that the target stores.

    Returns:
        The tensor in the new precision, whose ``origin`` is its own; None if no precision holds the values.
    """
    if tensor.precision.convention not in ("affine", "packed") or not tensor.sliceable:
        return None
    target = next((each for each in _candidates(tensor, conventions) if _holds(tensor, each)), None)
    return None if target is None else attrs.evolve(_carried(tensor, target), origin=tensor.precision)


def _candidates(tensor: EncodedTensor, conventions: Collection[str]) -> Iterator[Precision]:
    known = lattices([precision for precision in catalogue() if precision.convention in conventions])
    floats = not tensor.precision.kind.startswith("int")
    for precision in sorted(known, key=lambda each: each.bits_per_weight):
        if floats and precision.bits < tensor.precision.bits:
            continue  # not if every code occurs
        if fits(precision, tensor.shape) and relation(tensor.precision, precision).carry is not Carry.NO:
            yield precision


def _holds(tensor: EncodedTensor, target: Precision) -> bool:
    """Whether the target holds every code under the scales and zero points of all rows."""
    groups = 1 if tensor.precision.block is None else -(-tensor.shape[-1] // tensor.precision.block)
    step = max(1, _SCALES // groups)
    try:
        for start in range(0, tensor.rows, step):
            parts = tensor.read_parts(start, min(start + step, tensor.rows))
            transcode(_every_code(parts, tensor.precision, target, groups), target)
    except InexactError:
        return False
    return True


def _every_code(parts: Mapping[str, Array], precision: Precision, target: Precision, groups: int) -> QuantizedTensor:
    """Return a tensor with the same scales and zero points, and groups of the target's size that hold every code."""
    width = min(_group(target), precision.block or _group(target))
    name = precision.name.rpartition("-")[0] + f"-g{width}"
    pattern = np.rint(np.linspace(0, (1 << precision.bits) - 1, width)).astype(np.uint8)
    rows = len(parts["scale"])
    codes: U8 = np.tile(pack_lsb(pattern, precision.bits), (rows, groups))
    return QuantizedTensor({**parts, "codes": codes}, find_precision(name), (rows, groups * width))


def _group(precision: Precision) -> int:
    """Return how many columns a target encodes together."""
    return precision.block or 32


def first_exact(tensor: EncodedTensor, precisions: Iterable[Precision]) -> EncodedTensor | None:
    """Return a tensor's values in the first of some precisions that holds them exactly.

    What `relation` calls exact is taken; where it depends on the tensor, the whole tensor is tried, once.

    Args:
        tensor: what a file holds.
        precisions: whose blocks divide the rows.

    Returns:
        The tensor in the new precision, its codes converted as they are read; ``nbytes`` is by the bits of a weight,
        and ``origin`` is left as it was. None if no precision holds the values.
    """
    for precision in precisions:
        carry = relation(tensor.precision, precision).carry
        if carry is Carry.EXACT or (carry is not Carry.NO and _holds_this(tensor, precision)):
            return _carried(tensor, precision)
    return None


def _holds_this(tensor: EncodedTensor, precision: Precision) -> bool:
    """Whether the target holds the tensor's values, a few rows of which are looked at once."""
    carried = _carried(tensor, precision)
    unit = 1 if carried.sliceable else carried.together or max(1, tensor.rows)
    step = max(unit, _ELEMENTS // tensor.shape[-1] // unit * unit)
    try:
        for start in range(0, tensor.rows, step):
            carried.read_parts(start, min(start + step, tensor.rows))
    except InexactError:
        return False
    return True


def _carried(tensor: EncodedTensor, precision: Precision) -> EncodedTensor:
    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        shape = tensor.shape if stop - start == tensor.rows else (stop - start, tensor.shape[-1])
        rows = QuantizedTensor(tensor.read_parts(start, stop), tensor.precision, shape, tensor.name)
        return transcode(rows, precision).parts

    nbytes = int(tensor.size * precision.bits_per_weight) // 8
    shared = rows_together(precision, tensor.shape) if tensor.sliceable else None
    step = 0 if shared is None else shared.rows
    return attrs.evolve(
        tensor,
        precision=precision,
        nbytes=nbytes,
        read_parts=read_parts,
        sliceable=step == 1,
        together=0 if step == 1 else step,
    )


__all__ = ["carried_over", "first_exact"]
