"""How canonical tensors and the tensors of a Hugging Face checkpoint hold the same values.

Most are one and the same under two names. Others are cut: a checkpoint has one matrix an expert where the canonical
tensor is their stack, or gate and up in one tensor where the canonical ones are two. A `Link` reads and writes such a
group. Its tensors are views: they read those rows of the file that they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs
import numpy as np

from edgekit.errors import InvalidFileError
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.typing import F32, Array, Indices

Tensors = tuple[AnyTensor, ...]


@attrs.frozen(eq=False)
class Link:
    """Canonical tensors, and the Hugging Face tensors with the same values.

    Attributes:
        canonical: names of the canonical tensors.
        hf: names of Hugging Face's.
        read: gives the canonical tensors for Hugging Face's, both in the order of their names.
        write: gives Hugging Face's tensors for the canonical ones.
        roles: what each of Hugging Face's tensors is for: a canonical name, of an expert's matrix with its number
            (``blk.0.ffn_up_exps.weight[3]``).
        labels: a name in Hugging Face's terms for each canonical tensor.
    """

    canonical: tuple[str, ...]
    hf: tuple[str, ...]
    read: Callable[[Tensors], Tensors]
    write: Callable[[Tensors], Tensors]
    roles: tuple[str, ...]
    labels: tuple[str, ...]


def one(canonical: str, hf: str, offset: float = 0.0) -> Link:
    """A tensor under two names; canonical values are Hugging Face's plus `offset`."""

    def read(tensors: Tensors) -> Tensors:
        return (shifted(tensors[0], offset),)

    def write(tensors: Tensors) -> Tensors:
        return (shifted(tensors[0], -offset),)

    return Link((canonical,), (hf,), read, write, (canonical,), (hf,))


def mapped(
    canonical: str, hf: str, read: Callable[[AnyTensor], AnyTensor], write: Callable[[AnyTensor], AnyTensor]
) -> Link:
    """A tensor whose values or shape a function changes (`changed`), and another changes back."""
    return Link((canonical,), (hf,), lambda t: (read(t[0]),), lambda t: (write(t[0]),), (canonical,), (hf,))


def stacked(canonical: str, hf: Sequence[str], label: str) -> Link:
    """A stack [experts, out, in] of which Hugging Face has one matrix an expert."""

    def read(tensors: Tensors) -> Tensors:
        shapes = {tensor.shape for tensor in tensors}
        if len(shapes) > 1:
            odd = next(t for t in tensors if t.shape != tensors[0].shape)
            raise InvalidFileError(
                f"tensor {odd.name} has shape {list(odd.shape)}, those of the other experts {list(tensors[0].shape)}; "
                "the file is damaged"
            )
        return (joined(tensors, (len(tensors), *tensors[0].shape)),)

    def write(tensors: Tensors) -> Tensors:
        return tuple(part(tensors[0], i) for i in range(len(hf)))

    roles = tuple(f"{canonical}[{i}]" for i in range(len(hf)))
    return Link((canonical,), tuple(hf), read, write, roles, (label,))


def halves(canonical: tuple[str, str], hf: str, labels: tuple[str, str]) -> Link:
    """Two tensors [..., rows, in] that Hugging Face has in one [..., 2 rows, in], the first one's rows first."""

    def read(tensors: Tensors) -> Tensors:
        whole = tensors[0]
        *outer, rows, cols = whole.shape
        half, count = rows // 2, int(np.prod(outer, dtype=np.int64))
        shape = (*outer, half, cols)
        first = [(whole, i * rows, i * rows + half) for i in range(count)]
        second = [(whole, i * rows + half, (i + 1) * rows) for i in range(count)]
        return rows_of(whole.name, shape, first), rows_of(whole.name, shape, second)

    def write(tensors: Tensors) -> Tensors:
        *outer, rows, cols = tensors[0].shape
        count = int(np.prod(outer, dtype=np.int64))
        pieces = [(t, i * rows, (i + 1) * rows) for i in range(count) for t in tensors]
        return (rows_of(hf, (*outer, 2 * rows, cols), pieces),)

    return Link(canonical, (hf,), read, write, canonical[:1], labels)


def part(tensor: AnyTensor, number: int) -> AnyTensor:
    """One matrix of a stack, or one of its experts' biases."""
    height = tensor.rows // tensor.shape[0]
    return rows_of(tensor.name, tensor.shape[1:], [(tensor, number * height, (number + 1) * height)])


def joined(tensors: Sequence[AnyTensor], shape: tuple[int, ...]) -> AnyTensor:
    """Whole tensors one after the other."""
    return rows_of(tensors[0].name, shape, [(tensor, 0, tensor.rows) for tensor in tensors])


def shifted(tensor: AnyTensor, offset: float) -> AnyTensor:
    """The tensor plus a number, in float32; itself for 0."""
    return changed(tensor, lambda values: values + np.float32(offset)) if offset else tensor


def changed(tensor: AnyTensor, change: Callable[[F32], F32], shape: tuple[int, ...] | None = None) -> Tensor:
    """A function of each row in float32, [rows, cols] to [rows, cols], under another shape if one is given."""

    def read_rows(start: int, stop: int) -> F32:
        return change(tensor.float32(start, stop))

    return Tensor(tensor.name, tensor.shape if shape is None else shape, "float32", read_rows)


def under(shape: tuple[int, ...]) -> Callable[[AnyTensor], AnyTensor]:
    """A function that gives the same values under a shape."""
    return lambda tensor: reshaped(tensor, shape)


def decay(values: F32) -> F32:
    """What a recurrence decays by, of what checkpoints have: ``-exp(A_log)``."""
    return -np.exp(values)


def decay_log(values: F32) -> F32:
    """``A_log`` of a decay."""
    logarithms: F32 = np.log(-values)
    return logarithms


def named(name: str, top: Mapping[str, str], layers: str, inside: Mapping[str, str]) -> str:
    """Hugging Face's name of a tensor that both have alike.

    Args:
        name: canonical (``blk.0.attn_q.weight``).
        top: names of what lies outside the layers, without ``.weight``.
        layers: what layers are called (``model.layers``).
        inside: names inside a layer.
    """
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{top[stem]}.{kind}"
    _, layer, role = stem.split(".", 2)
    return f"{layers}.{layer}.{inside[role]}.{kind}"


def whole(tensor: AnyTensor, shape: tuple[int, ...], change: Callable[[F32], F32]) -> Tensor:
    """A function of all values in float32, [rows, cols] to `shape`; read whole whenever a row is asked for."""

    def read_rows(start: int, stop: int) -> F32:
        values = change(tensor.float32()).reshape(-1, shape[-1])
        return values[start:stop]

    return Tensor(tensor.name, shape, "float32", read_rows)


def every_other(tensor: AnyTensor, first: int, shape: tuple[int, ...]) -> AnyTensor:
    """Every second row, from row `first` (0 or 1) on; encoded as the tensor is."""
    if isinstance(tensor, EncodedTensor):
        read_parts = tensor.read_parts

        def parts(start: int, stop: int) -> dict[str, Array]:
            return {key: part[first::2] for key, part in read_parts(2 * start, 2 * stop).items()}

        return attrs.evolve(tensor, shape=shape, nbytes=tensor.nbytes // 2, read_parts=parts)
    read = tensor.read_rows
    return attrs.evolve(tensor, shape=shape, read_rows=lambda start, stop: read(2 * start, 2 * stop)[first::2])


def transposed(tensors: Sequence[AnyTensor], shape: tuple[int, ...], name: str) -> Tensor:
    """Stacks [experts, a, b] as one [experts, b, a]; of several their columns are interleaved, then transposed.

    An expert is read whole when one of its rows is asked for, and kept until another one is.
    """
    plain = all(isinstance(tensor, Tensor) and tensor.dtype == getattr(tensors[0], "dtype", "") for tensor in tensors)
    dtype = tensors[0].dtype if plain and isinstance(tensors[0], Tensor) else "float32"

    def rows(tensor: AnyTensor, start: int, stop: int) -> Array:
        return tensor.read_rows(start, stop) if plain and isinstance(tensor, Tensor) else tensor.float32(start, stop)

    @lru_cache(maxsize=1)
    def expert(number: int) -> Array:
        heights = [tensor.rows // tensor.shape[0] for tensor in tensors]
        each = [rows(t, number * h, (number + 1) * h) for t, h in zip(tensors, heights, strict=True)]
        together = each[0] if len(each) == 1 else np.stack(each, axis=1).reshape(-1, each[0].shape[-1])
        return np.ascontiguousarray(together.T)

    def read_rows(start: int, stop: int) -> Array:
        height, pieces = shape[-2], []
        for number in range(start // height, -(-stop // height)):
            low, high = max(start - number * height, 0), min(stop - number * height, height)
            pieces.append(expert(number)[low:high])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return Tensor(name, shape, dtype, read_rows)


def columns(tensor: AnyTensor, order: Indices) -> Tensor:
    """The tensor with its columns in another order: column j of the result is column ``order[j]``.

    Plain floats stay as they are; encoded tensors are decoded, because their blocks lie across columns.
    """
    if isinstance(tensor, EncodedTensor):
        return changed(tensor, lambda values: values[:, order])
    read = tensor.read_rows
    return attrs.evolve(tensor, read_rows=lambda start, stop: np.ascontiguousarray(read(start, stop)[:, order]))


def reshaped(tensor: AnyTensor, shape: tuple[int, ...]) -> AnyTensor:
    """The same values under another shape: rows keep their length, or are plain floats that are read whole."""
    if tensor.shape and shape and tensor.shape[-1] == shape[-1]:
        return attrs.evolve(tensor, shape=shape)
    if isinstance(tensor, EncodedTensor):
        return whole(tensor, shape, lambda values: values)
    read = tensor.read

    def read_rows(start: int, stop: int) -> Array:
        return read().reshape(-1, shape[-1])[start:stop]

    return Tensor(tensor.name, shape, tensor.dtype, read_rows)


def rows_of(name: str, shape: tuple[int, ...], pieces: Sequence[tuple[AnyTensor, int, int]]) -> AnyTensor:
    """A tensor made of rows of others, in order; encoded or in the file's type where all of them are alike.

    Args:
        name: for messages.
        shape: of the result; its rows are as many as the pieces have together.
        pieces: tensors with the first and the last row (exclusive) to take.
    """
    starts = np.cumsum([0, *(stop - start for _, start, stop in pieces)])

    def wanted(start: int, stop: int) -> list[tuple[AnyTensor, int, int]]:
        first = int(np.searchsorted(starts, start, side="right")) - 1
        found = []
        for index in range(max(first, 0), len(pieces)):
            tensor, begin, end = pieces[index]
            low = begin + max(0, start - int(starts[index]))
            high = min(end, begin + stop - int(starts[index]))
            if high <= begin:
                break
            found.append((tensor, low, high))
        return found

    def joined_rows(read: Callable[[Any, int, int], Array]) -> Callable[[int, int], Array]:
        def rows(start: int, stop: int) -> Array:
            arrays = [read(*piece) for piece in wanted(start, stop)]
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

        return rows

    kinds = {_kind(tensor) for tensor, _, _ in pieces}
    sample = pieces[0][0]
    if len(kinds) > 1 or "" in kinds:
        return Tensor(name, shape, "float32", joined_rows(lambda tensor, a, b: tensor.float32(a, b)))
    if isinstance(sample, Tensor):
        return Tensor(name, shape, sample.dtype, joined_rows(lambda tensor, a, b: tensor.read_rows(a, b)))

    def parts(start: int, stop: int) -> dict[str, Array]:
        several = [tensor.read_parts(a, b) for tensor, a, b in wanted(start, stop) if isinstance(tensor, EncodedTensor)]
        if len(several) == 1:
            return dict(several[0])
        return {key: np.concatenate([each[key] for each in several]) for key in several[0]}

    nbytes = sum(t.nbytes * (stop - start) // max(1, t.rows) for t, start, stop in pieces)
    return EncodedTensor(name, shape, sample.precision, nbytes, parts)


def _kind(tensor: AnyTensor) -> str:
    """What tensors have in common whose rows may be joined as they are; empty where they may not."""
    if isinstance(tensor, Tensor):
        return tensor.dtype
    return tensor.precision.name if tensor.sliceable and tensor.precision.rowwise else ""


__all__ = [
    "Link",
    "Tensors",
    "changed",
    "columns",
    "decay",
    "decay_log",
    "every_other",
    "halves",
    "joined",
    "mapped",
    "named",
    "one",
    "part",
    "reshaped",
    "rows_of",
    "shifted",
    "stacked",
    "transposed",
    "under",
    "whole",
]
