"""Slots, and the plan that a recipe makes for them."""

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
        role: what the tensor is for, in edgekit's canonical names (``blk.0.attn_q.weight``), in which recipes
            are stated; the target's name where the family is not known.
        tensor: its values, rows already in the target's order.
        keep: the precision of a tensor that is not quantized (a norm, a bias), or that is quantized already: what the
            format would store. For an encoded tensor its own precision, or the float type to decode it to.
    """

    name: str
    role: str
    tensor: AnyTensor
    keep: Precision

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the target, outermost dimension first."""
        return self.tensor.shape


@attrs.frozen
class Assignment:
    """One line of a plan: this tensor gets this precision, for this reason.

    Attributes:
        name, role, shape: the slot's.
        precision: what the tensor is stored in.
        reason: why, for people.
        asked: the precision that the recipe asks for and the tensor cannot have (its block does not divide the rows);
            None where `precision` is what was asked.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    precision: Precision
    reason: str
    asked: Precision | None = None

    @property
    def fell_back(self) -> bool:
        """Whether the tensor gets another precision than the recipe asks for."""
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
    """The recipe applied to a model: one assignment a tensor, in the order of the file."""

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
        """Average over all elements, from the precisions' own figures; 0 for a plan without elements."""
        bits = sum((a.size * a.precision.bits_per_weight for a in self), Fraction(0))
        return bits / max(1, sum(a.size for a in self))

    @property
    def asked_bits_per_weight(self) -> Fraction:
        """As `bits_per_weight`, had every tensor the precision that the recipe asks for."""
        bits = sum((a.size * (a.asked or a.precision).bits_per_weight for a in self), Fraction(0))
        return bits / max(1, sum(a.size for a in self))


def is_matrix(slot: Slot) -> bool:
    """Whether the slot is a weight matrix: two dimensions or more, and a name that ends in ``weight``."""
    return len(slot.shape) > 1 and slot.name.endswith("weight")
