"""Slots, and a recipe's plan for them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import attrs

from edgekit.files import _html
from edgekit.precision import Precision
from edgekit.tensor import AnyTensor


@attrs.frozen(eq=False)
class Slot:
    """A place in the target for one tensor.

    Attributes:
        name: the tensor's name in the target's own naming.
        role: edgekit's canonical name of the tensor (``blk.0.attn_q.weight``), which recipes use; the target's name
            if the family is unknown.
        tensor: its values, rows already in the target's order.
        keep: the precision in which the format stores the tensor if it is not quantized (a norm, a bias) or already
            encoded: the encoded tensor's precision, or the float type to which it is decoded.
        quantizable: whether the target's readers take the tensor quantized.
    """

    name: str
    role: str
    tensor: AnyTensor
    keep: Precision
    quantizable: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the target, outermost dimension first."""
        return self.tensor.shape


@attrs.frozen
class Assignment:
    """One line of a plan: the precision of a tensor, with the reason.

    Attributes:
        name, role, shape: the slot's.
        precision: in which the tensor is stored.
        reason: a sentence for the user.
        asked: the precision that the recipe specifies, if the tensor cannot have it (its rows are not a multiple of
            the block); else None.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    precision: Precision
    reason: str
    asked: Precision | None = None

    @property
    def fell_back(self) -> bool:
        """Whether the tensor gets another precision than the recipe specifies."""
        return self.asked is not None and self.asked != self.precision

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for dimension in self.shape:
            size *= dimension
        return size


@attrs.frozen(repr=False)
class Plan:
    """A recipe applied to a model: one assignment for each tensor, in the order of the file."""

    recipe: str
    assignments: tuple[Assignment, ...]

    def __repr__(self) -> str:
        return f"Plan({self._title()})"

    def _repr_html_(self) -> str:
        rows = ((a.name, _html.shape(a.shape), a.precision.name, a.reason) for a in self)
        return _html.table(self._title(), ("tensor", "shape", "precision", "reason"), rows)

    def _title(self) -> str:
        return f"{self.recipe}: {len(self)} tensors, {float(self.bits_per_weight):.3f} bits a weight"

    def __iter__(self) -> Iterator[Assignment]:
        return iter(self.assignments)

    def __len__(self) -> int:
        return len(self.assignments)

    @property
    def bits_per_weight(self) -> Fraction:
        """Average over all elements, from the precisions' bits per weight; 0 for a plan without elements."""
        bits = sum((a.size * a.precision.bits_per_weight for a in self), Fraction(0))
        return bits / max(1, sum(a.size for a in self))

    @property
    def asked_bits_per_weight(self) -> Fraction:
        """The average if every tensor had the precision that the recipe specifies."""
        bits = sum((a.size * (a.asked or a.precision).bits_per_weight for a in self), Fraction(0))
        return bits / max(1, sum(a.size for a in self))


def is_matrix(slot: Slot) -> bool:
    """Return whether a slot is a weight matrix: two dimensions or more, and a name that ends in ``weight``.

    A matrix that the target's readers take in float alone counts as none.
    """
    return len(slot.shape) > 1 and slot.name.endswith("weight") and slot.quantizable
