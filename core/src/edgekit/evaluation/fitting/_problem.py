"""The problem of a fit: the tensors of a layout, the precisions that each may have, and their sizes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import attrs

from edgekit.artifact import Artifact, Format, Layout, Sizes
from edgekit.encoding._codecs import choose
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.pipeline._conversion import make_plan
from edgekit.pipeline._recipes import AnyRecipe, find_recipe, target_precision
from edgekit.precision import Precision
from edgekit.recipe import Plan, Recipe, Rules, Slot, is_matrix
from edgekit.reference import reference
from edgekit.tensor import EncodedTensor

#: A choice: the precision of each tensor, by canonical name.
Choice = Mapping[str, Precision]


@attrs.frozen(eq=False)
class Unit:
    """Tensors that get one precision: a weight matrix, or several for which the format requires the same one.

    Attributes:
        slots: the tensors.
        options: the precisions that all of them can have, by ascending size.
        sizes: total bytes of the tensors, for each option.
    """

    slots: tuple[Slot, ...]
    options: tuple[Precision, ...]
    sizes: tuple[int, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """The canonical names of the tensors."""
        return tuple(slot.role for slot in self.slots)

    @property
    def name(self) -> str:
        """The canonical names, joined by ``+``."""
        return "+".join(self.roles)

    def size(self, precision: Precision) -> int:
        """Return the total bytes of the tensors in one of the options."""
        return self.sizes[self.options.index(precision)]


@attrs.frozen(eq=False)
class Problem:
    """The choice of precisions for one model and format.

    Attributes:
        layout: the tensors as the format stores them.
        sizes: the sizes of tensors in the format.
        format: the format's name.
        units: the units to choose a precision for.
    """

    layout: Layout
    sizes: Sizes
    format: str
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, source: Artifact, chosen: Format, allow: Sequence[str | Precision] | None = None) -> Problem:
        """Return the problem of a model in a format.

        Args:
            source: the model.
            chosen: the format.
            allow: the precisions to choose from; None takes those that the format suggests.

        Raises:
            UsageError: the format does not state sizes, or cannot store a precision, or a tensor can have none of them.
            UnsupportedModelError: the family is not supported.
        """
        sizes = getattr(chosen, "sizes", None)
        if sizes is None:
            raise UsageError(f"format {chosen.name} does not say what tensors take in it; choose another, such as gguf")
        layout = chosen.layout(source)
        if layout.model is None:
            raise UnsupportedModelError(f"{source.path}: its family is not supported, so it cannot be measured")
        matrices = [s for s in layout.slots if is_matrix(s) and len(s.shape) == 2 and s.role in layout.model.tensors]
        counted: Sizes = sizes(layout)
        allowed = None if allow is None else _allowed(allow, chosen.name, counted, matrices)
        units = tuple(_units(matrices, counted, allowed))
        if not units:
            raise UsageError(
                f"{source.path}: it has no weight matrix that {chosen.name} can store in another precision"
            )
        return cls(layout, counted, chosen.name, units)

    def choice(self, numbers: Sequence[int]) -> dict[str, Precision]:
        """Return the precision of each tensor for the index of each unit's option."""
        pairs = zip(self.units, numbers, strict=True)
        return {role: unit.options[number] for unit, number in pairs for role in unit.roles}

    def recipe(self, choice: Choice, name: str = "") -> Rules:
        """Return the recipe of a choice, with one rule per tensor."""
        return Recipe.of(dict(choice), name=name)

    def plan(self, choice: Choice) -> Plan:
        """Return the plan of a choice."""
        return make_plan(find_recipe(self.recipe(choice), self.format), self.layout)

    def nbytes(self, choice: Choice) -> int:
        """Return the bytes of the artifact of a choice, without the manifest."""
        return self.sizes.whole(self.plan(choice))

    def units_nbytes(self, choice: Choice) -> int:
        """Return the bytes of the units' tensors."""
        return sum(unit.size(choice[unit.roles[0]]) for unit in self.units)

    @functools.cached_property
    def smallest(self) -> dict[str, Precision]:
        """Return the choice of the smallest option for every unit."""
        return self.choice([0] * len(self.units))

    @functools.cached_property
    def largest(self) -> dict[str, Precision]:
        """Return the choice of the largest option for every unit."""
        return self.choice([len(unit.options) - 1 for unit in self.units])

    def uniform(self) -> Iterator[dict[str, Precision]]:
        """Yield, for each precision that all units can have, the choice that gives it to all of them."""
        for precision in {p.name: p for unit in self.units for p in unit.options}.values():
            if all(precision in unit.options for unit in self.units):
                yield {role: precision for unit in self.units for role in unit.roles}

    def of_recipe(self, recipe: AnyRecipe) -> tuple[Plan, dict[str, Precision] | None]:
        """Return a recipe's plan and its choice; None for the choice if a precision is not among the options."""
        plan = make_plan(find_recipe(recipe, self.format), self.layout, importance=True)
        planned = {line.role: line.precision for line in plan}
        inside = all({planned[role] for role in u.roles} <= {planned[u.roles[0]]} & set(u.options) for u in self.units)
        return plan, {role: planned[role] for unit in self.units for role in unit.roles} if inside else None


def _allowed(
    allow: Sequence[str | Precision], format_name: str, sizes: Sizes, matrices: Sequence[Slot]
) -> list[Precision]:
    if not allow or isinstance(allow, str):
        raise UsageError("the precisions to choose from are a list of at least one name, such as Q4_K, Q6_K")
    precisions = [target_precision(name, format_name) if isinstance(name, str) else name for name in allow]
    for precision in precisions:
        if not any(sizes.stored(slot, precision) is not None for slot in matrices):
            raise UsageError(
                f"{precision.name} cannot be stored in {format_name} for any matrix of this model; leave it out "
                f"(`edgekit precisions` lists all)"
            )
        if reference(precision).traits.decode_only and choose(precision, None) is None:
            raise UsageError(f"{precision.name} can be decoded, but not encoded; leave it out")
    return list(dict.fromkeys(precisions))


def _units(matrices: Sequence[Slot], sizes: Sizes, allowed: list[Precision] | None) -> Iterator[Unit]:
    groups = {role: tuple(group) for group in sizes.ties() for role in group}
    by_role = {slot.role: slot for slot in matrices}
    for slot in matrices:
        roles = [role for role in groups.get(slot.role, (slot.role,)) if role in by_role]
        if slot.role == roles[0]:
            unit = _unit([by_role[role] for role in roles], sizes, allowed)
            if unit.options:
                yield unit


def _unit(slots: list[Slot], sizes: Sizes, allowed: list[Precision] | None) -> Unit:
    """Return the unit of some slots; its options are the precisions that all can have, by ascending size."""
    nbytes: dict[Precision, int] = {}
    for precision in _tried(slots[0], sizes) if allowed is None else allowed:
        stored = [sizes.stored(slot, precision) for slot in slots]
        if all(size is not None for size in stored):
            nbytes[precision] = sum(size or 0 for size in stored)
    if not nbytes and allowed is not None:
        raise UsageError(
            f"{slots[0].role} has rows of {slots[0].shape[-1]}, which none of the allowed precisions "
            f"({', '.join(p.name for p in allowed)}) can store; allow one whose block divides them"
        )
    ordered = sorted(nbytes, key=lambda precision: (nbytes[precision], precision.name))
    return Unit(tuple(slots), tuple(ordered), tuple(nbytes[precision] for precision in ordered))


def _tried(slot: Slot, sizes: Sizes) -> list[Precision]:
    """Return the format's candidates for a tensor, and its present precision if it is encoded."""
    present = [slot.tensor.precision] if isinstance(slot.tensor, EncodedTensor) else []
    return list(dict.fromkeys([*sizes.candidates(slot), *present]))


__all__ = ["Choice", "Problem", "Unit"]
