"""From the states of a text to its embedding: pooling, and the matrices that sentence-transformers puts after it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from edgekit.architectures._config import ModelConfig, Pooling
from edgekit.architectures.mixers import Shape
from edgekit.architectures.ops import Ops, V

#: The matrices are ``dense_2``, ``dense_3`` …, as llama.cpp calls them: module 0 computes the states, module 1 pools.
FIRST = 2


@attrs.frozen
class Pooled:
    """What comes after the last states of an embedding model.

    Attributes:
        how: which states count.
        dense: output widths of the matrices.
    """

    how: Pooling = "mean"
    dense: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: ModelConfig) -> Pooled:
        """That of a model; the mean where its files say nothing."""
        return cls(config.pooling or "mean", config.dense)

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """Name and shape of every matrix, [out, in]."""
        for number, rows in enumerate(self.dense, FIRST):
            yield f"dense_{number}.weight", (rows, width)
            width = rows

    def forward(self, ops: Ops[V], states: V) -> V:
        """One vector for each sequence, [batch, width], not yet of length 1; states are [batch, n, width]."""
        x = ops.pool(states, self.how)
        for number in range(FIRST, FIRST + len(self.dense)):
            x = ops.product(f"dense_{number}", x)
        return x


__all__ = ["FIRST", "Pooled"]
