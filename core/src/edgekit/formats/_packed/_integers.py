"""Integers with a scale and a zero point for each group: one tensor, whichever library packed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np

from edgekit.formats._packed._scheme import Source, encoded, granularity, groups_of
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import F32, I16, Array


@attrs.frozen(eq=False)
class Integers:
    """The scales and zero points of a tensor of integers [out, in].

    Attributes:
        bits: of a code.
        group: columns that share a scale; None for a whole row.
        scale: [out, groups], or one element.
        zero: reads zero points [out, groups], counted from code 0; None where they are 2^(bits - 1).
        index: the group of each column [in], where columns were quantized in another order; None where the groups are
            neighbours.
        source: for messages.
    """

    bits: int
    group: int | None
    scale: Tensor
    zero: Callable[[], I16] | None
    index: Tensor | None
    source: Source

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts that hold them."""
        module = self.scale.name.rpartition(".")[0]
        return (
            self.scale.name,
            *self.source.present(f"{module}.weight_zero_point", f"{module}.weight_g_idx"),
        )


def integer_tensor(
    name: str, shape: tuple[int, ...], parts: Integers, codes: Callable[[int, int], Array], packed: tuple[Tensor, ...]
) -> EncodedTensor:
    """Return packed integers as ``affine``, or as ``packed`` where the groups are no neighbours.

    Args:
        name: of the tensor.
        shape: of the tensor, [out, in].
        parts: scales and zero points.
        codes: reads rows of codes, LSB first, each row in whole bytes.
        packed: the file's tensors that hold the codes, for their size.
    """
    grid = shape[0], groups_of(shape[1], parts.group)

    def scales(start: int, stop: int) -> F32:
        scale = parts.scale.float32().reshape(-1, grid[1] if parts.scale.size > 1 else 1)
        return np.broadcast_to(scale, grid)[start:stop]

    def read(start: int, stop: int) -> Mapping[str, Array]:
        encoded = {"codes": codes(start, stop), "scale": scales(start, stop)}
        if parts.zero is not None:
            encoded["zero_point"] = parts.zero()[start:stop].astype(np.uint8)
        return encoded

    held = (*packed, parts.scale)
    if parts.index is not None and not _neighbours(parts):
        return _reordered(name, shape, parts, read, held)
    kind = f"affine:int{parts.bits}-{'sym' if parts.zero is None else 'asym'}-{granularity(parts.group)}"
    return encoded(name, shape, kind, held, read)


def turned(part: Tensor) -> Tensor:
    """Return a small matrix transposed: scales [groups, out] as [out, groups]."""

    def read_rows(start: int, stop: int) -> Array:
        return np.ascontiguousarray(part.read().T[start:stop])

    return attrs.evolve(part, shape=part.shape[::-1], read_rows=read_rows)


def _neighbours(parts: Integers) -> bool:
    """Whether the listed groups are those of neighbours after all, as tools write them without ``desc_act``."""
    assert parts.index is not None
    index = group_index(parts)
    return bool((index == np.arange(len(index)) // (parts.group or len(index))).all())


def group_index(parts: Integers) -> Array:
    """Return the group of each column.

    Raises:
        InvalidFileError: a group that does not exist.
    """
    assert parts.index is not None
    index = parts.index.read().reshape(-1)
    groups = groups_of(len(index), parts.group)
    if len(index) and not (index.min() >= 0 and index.max() < groups):
        raise parts.source.mismatch(parts.index.name, parts.index.shape, f"groups of 0 … {groups - 1} as its values")
    return index


def _reordered(
    name: str,
    shape: tuple[int, ...],
    parts: Integers,
    read: Callable[[int, int], Mapping[str, Array]],
    held: tuple[Tensor, ...],
) -> EncodedTensor:
    index = group_index(parts).astype(np.uint16 if groups_of(shape[1], parts.group) <= 1 << 16 else np.uint32)
    half = np.int16(1 << (parts.bits - 1))

    def listed(start: int, stop: int) -> Mapping[str, Array]:
        given = dict(read(start, stop))
        zero = given.pop("zero_point", None)
        given["zero"] = np.full(given["scale"].shape, half) if zero is None else zero.astype(np.int16)
        given["group"] = np.broadcast_to(index, (stop - start, len(index)))
        return given

    return encoded(name, shape, f"packed:int{parts.bits}-{granularity(parts.group)}", held, listed)


__all__ = ["Integers", "group_index", "integer_tensor", "turned"]
