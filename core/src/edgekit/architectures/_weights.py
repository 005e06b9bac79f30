"""Weights in float32 for the numpy forward pass: kept, or read anew a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import numpy as np

from edgekit.tensor import AnyTensor
from edgekit.typing import F32, Ints

#: Called with the canonical name of a weight matrix and its input, float32 [tokens, in], before each product; of an
#: expert's matrix with the name and the expert's number (``blk.0.ffn_up_exps.weight[3]``), the tokens being those that
#: use it.
Observe = Callable[[str, F32], None]
#: Weights that are decoded at once where they are not kept: 64 MiB of float32.
_CHUNK = 1 << 24


@attrs.frozen(eq=False)
class Weights:
    """The tensors of a model.

    Attributes:
        tensors: by canonical name.
        keep: whether decoded values stay in `kept`.
        observe: called with the input of every product.
        halves: whether each product is summed in two halves.
        kept: values decoded so far, [rows, cols] by name.
    """

    tensors: Mapping[str, AnyTensor]
    keep: bool
    observe: Observe | None
    halves: bool
    kept: dict[str, F32]

    def values(self, name: str) -> F32:
        """A whole tensor in float32 [rows, cols]; a vector is one row."""
        if name in self.kept:
            return self.kept[name]
        values = self.tensors[name].float32()
        if self.keep:
            self.kept[name] = values
        return values

    def rows(self, name: str, ids: Ints) -> F32:
        """The rows of those numbers: [*ids.shape, cols]."""
        if self.keep:
            return self.values(name)[ids]
        tensor = self.tensors[name]
        numbers, places = np.unique(ids, return_inverse=True)
        return np.concatenate([tensor.float32(i, i + 1) for i in numbers])[places.reshape(ids.shape)]

    def product(self, name: str, x: F32) -> F32:
        """``x @ weight.T + bias``: [..., in] to [..., out]; `name` is without ``.weight``."""
        rows = x.reshape(-1, x.shape[-1])
        if self.observe is not None:
            self.observe(f"{name}.weight", rows)
        count = self.tensors[f"{name}.weight"].rows
        out = self._times(rows, f"{name}.weight", 0, count)
        if f"{name}.bias" in self.tensors:
            out += self.values(f"{name}.bias")
        return out.reshape(*x.shape[:-1], -1)

    def expert(self, name: str, number: int, rows: F32) -> F32:
        """As `product`, with the matrix of one expert of a stack [experts, out, in]: [tokens, in] to [tokens, out]."""
        if self.observe is not None:
            self.observe(f"{name}.weight[{number}]", rows)
        height = self.tensors[f"{name}.weight"].shape[1]
        out = self._times(rows, f"{name}.weight", number * height, (number + 1) * height)
        if f"{name}.bias" in self.tensors:
            out += self.values(f"{name}.bias")[number]
        return out

    def _times(self, rows: F32, name: str, start: int, stop: int) -> F32:
        return np.concatenate([self._with(rows, piece) for piece in self._pieces(name, start, stop)], axis=-1)

    def _with(self, rows: F32, piece: F32) -> F32:
        """``rows @ piece.T`` in one of the two orders of summation."""
        if not self.halves:
            return rows @ piece.T
        half = rows.shape[1] // 2
        return rows[:, :half] @ piece[:, :half].T + rows[:, half:] @ piece[:, half:].T

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[F32]:
        """Rows ``start:stop`` in float32: at once where they are kept, else some at a time."""
        if self.keep:
            yield self.values(name)[start:stop]
            return
        tensor = self.tensors[name]
        step = max(1, _CHUNK // tensor.shape[-1])
        for first in range(start, stop, step):
            yield tensor.float32(first, min(first + step, stop))


__all__ = ["Observe", "Weights"]
