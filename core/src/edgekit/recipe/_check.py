"""The check of a recipe's plan, before a tensor is read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from edgekit.errors import ShapeError, UsageError
from edgekit.precision import Precision, fits
from edgekit.recipe._plan import Assignment, Plan, Slot


def check_plan(plan: object, slots: Sequence[Slot], recipe: str) -> Plan:
    """Return the plan if it has one assignment for each slot, in their order, with a precision that fits the rows.

    Args:
        plan: what a recipe's `plan` returned.
        slots: for which it was made.
        recipe: its name, for messages.

    Raises:
        UsageError: not a plan, or tensors that are missing, duplicate, unknown, out of order or of another shape.
        ShapeError: rows that are not a multiple of the precision's block.
    """
    who = f"recipe {recipe!r}"
    if not isinstance(plan, Plan) or not all(isinstance(line, Assignment) for line in plan):
        returned = "a Plan that holds other things" if isinstance(plan, Plan) else f"{plan!r:.80}"
        raise UsageError(f"{who} returned {returned}; return an edgekit.recipe.Plan of Assignments")
    _refuse_names(plan, slots, who)
    for slot, line in zip(slots, plan, strict=True):
        _refuse_line(slot, line, who)
    return plan


def _refuse_names(plan: Plan, slots: Sequence[Slot], who: str) -> None:
    names, expected = [line.name for line in plan], [slot.name for slot in slots]
    known, planned = set(expected), set(names)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), expected, n=3) or expected[:3]
            raise UsageError(f"{who} plans tensor {name!r}, which the target does not have; near it are {_list(near)}")
    missing = [name for name in expected if name not in planned]
    if missing:
        raise UsageError(
            f"{who} leaves out {len(missing)} of {len(expected)} tensors ({_list(missing)}); give each slot one line"
        )
    if len(names) != len(expected):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{who} plans tensor {twice!r} twice; give each slot one line")
    for name, slot in zip(names, slots, strict=True):
        if name != slot.name:
            raise UsageError(f"{who} plans {name!r} where {slot.name!r} is next; keep the order of the slots")


def _refuse_line(slot: Slot, line: Assignment, who: str) -> None:
    where = f"{who}, tensor {line.name!r}"
    if (line.role, tuple(line.shape)) != (slot.role, tuple(slot.shape)):
        raise UsageError(
            f"{where}: role and shape are {line.role!r} {line.shape}, the slot's are {slot.role!r} {slot.shape}; "
            "take them from the slot"
        )
    if not isinstance(line.precision, Precision):
        raise UsageError(
            f"{where}: its precision is {line.precision!r:.80}, a {type(line.precision).__name__}; "
            "assign a Precision, such as find_precision('ggml:Q4_0')"
        )
    if not fits(line.precision, slot.shape):
        raise ShapeError(
            f"{where}: rows of {slot.shape[-1] if slot.shape else 1} are not a multiple of {line.precision.name}'s "
            f"block of {line.precision.block}; give {line.role} a precision with a smaller block, or a float type (F16)"
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
