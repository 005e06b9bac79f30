"""Recipes: which tensor gets which precision, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Protocol

import attrs

from edgekit.architectures import ModelConfig
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
        keep: the precision of a tensor that is not quantized (a norm, a bias): what the format would store.
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
    """One line of a plan: this tensor gets this precision, for this reason."""

    name: str
    role: str
    shape: tuple[int, ...]
    precision: Precision
    reason: str

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for dimension in self.shape:
            size *= dimension
        return size


@attrs.frozen
class Plan:
    """The recipe applied to a model: one assignment a tensor, in the order of the file."""

    recipe: str
    assignments: tuple[Assignment, ...]

    def __iter__(self) -> Iterator[Assignment]:
        return iter(self.assignments)

    def __len__(self) -> int:
        return len(self.assignments)

    @property
    def bits_per_weight(self) -> Fraction:
        """Average over all elements, from the precisions' own figures."""
        bits = sum((a.size * a.precision.bits_per_weight for a in self), Fraction(0))
        return bits / sum(a.size for a in self)


class Recipe(Protocol):
    """Chooses a precision for every tensor that a format will store."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Choose, giving a reason for each tensor.

        Args:
            slots: the tensors in the order of the file.
            config: the model's hyper-parameters; None where the family is not known.
            importance: whether an importance matrix is at hand.

        Raises:
            UnsupportedModelError: the recipe needs to know the family, and `config` is None.
        """
        ...


@attrs.frozen
class Uniform:
    """One precision for every weight matrix; norms, biases and what the blocks do not fit keep theirs."""

    precision: Precision

    @property
    def name(self) -> str:
        """The precision's name."""
        return self.precision.name

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign the precision to every slot of two or more dimensions whose rows it can hold."""
        return Plan(self.name, tuple(self._assign(slot) for slot in slots))

    def _assign(self, slot: Slot) -> Assignment:
        precision, reason = self.precision, "weight matrix"
        if len(slot.shape) < 2 or not slot.name.endswith("weight"):
            precision, reason = slot.keep, "not a weight matrix"
        elif not fits(self.precision, slot.shape):
            precision, reason = slot.keep, f"rows of {slot.shape[-1]} are no multiple of {self.precision.block}"
        return Assignment(slot.name, slot.role, slot.shape, precision, reason)


def fits(precision: Precision, shape: Sequence[int]) -> bool:
    """Whether rows of that shape can be encoded: any length, or whole blocks where the format wants them."""
    return not (precision.whole_blocks and precision.block and shape[-1] % precision.block)
