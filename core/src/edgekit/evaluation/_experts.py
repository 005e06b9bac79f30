"""Squared inputs of experts: each row of a stack over the tokens that reached the expert."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.architectures import Model
from edgekit.encoding._importance import stack_of
from edgekit.typing import F32, F64


class ExpertSums:
    """Sums of the squared inputs of a model's experts.

    Attributes:
        sums: float64 [experts, cols], by name of the stack; there from the first token on that reached one.
        counts: how many tokens reached each expert, float64 [experts].
    """

    def __init__(self, model: Model) -> None:
        self._tensors = model.tensors
        self.sums: dict[str, F64] = {}
        self.counts: dict[str, F64] = {}

    def add(self, name: str, x: F32) -> bool:
        """Add the inputs [tokens, cols] of an expert's matrix; return False for a matrix that is no expert's."""
        stack, number = stack_of(name)
        if number is None:
            return False
        if stack not in self.sums:
            experts = self._tensors[stack].shape[0]
            self.sums[stack], self.counts[stack] = np.zeros((experts, x.shape[1])), np.zeros(experts)
        self.sums[stack][number] += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        self.counts[stack][number] += len(x)
        return True

    def merge(self, sums: Mapping[str, F64], counts: Mapping[str, F64]) -> None:
        """Add sums and counts that were made elsewhere."""
        for stack, added in sums.items():
            self.sums[stack] = self.sums[stack] + added if stack in self.sums else added
            self.counts[stack] = self.counts[stack] + counts[stack] if stack in self.counts else counts[stack]


__all__ = ["ExpertSums"]
