"""What a recipe would make of a model, from its hyper-parameters: kinds of precision and bytes of every tensor.

Plans are made for the canonical tensors (`edgekit.architectures.tensor_shapes`), with experts as stacks: about a
thousand for any model, where a checkpoint may have forty thousand. The files' headers and alignment are not counted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from edgekit.architectures import ModelConfig, tensor_shapes
from edgekit.errors import EdgekitError
from edgekit.pipeline import find_recipe
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Recipe, Slot
from edgekit.tensor import Tensor
from edgekit_workflow.memory import by_kind, precision_kind

_KEPT = "float:F16"


@attrs.frozen
class Planned:
    """What a recipe would make of a model.

    Attributes:
        tensors: kind of precision and bytes of each tensor, by canonical name.
        fallbacks: tensors that cannot have the precision that the recipe asks for, by canonical name, with the reason.
    """

    tensors: Mapping[str, tuple[str, int]]
    fallbacks: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes for _, nbytes in self.tensors.values())

    @property
    def kinds(self) -> dict[str, int]:
        """Bytes by kind of precision, the embedding's apart, as `edgekit_workflow.memory.memory_needed` takes them."""
        return by_kind((name, kind, nbytes) for name, (kind, nbytes) in self.tensors.items())


def planned(config: ModelConfig, recipe: str, format_name: str) -> Planned:
    """Return what a recipe would make of a model in a format.

    Raises:
        UnknownRecipeError: no such recipe is installed for the format.
    """
    return planned_with(config, find_recipe(recipe, format_name))


def planned_with(config: ModelConfig, recipe: Recipe) -> Planned:
    """Return what a recipe would make of a model."""
    plan: Plan = recipe.plan(slots(config), config)
    tensors = {line.role: (precision_kind(line.precision), stored(line.precision, line.shape)) for line in plan}
    fallbacks = {line.role: line.reason for line in plan if line.fell_back}
    return Planned(tensors, fallbacks)


def uniform(config: ModelConfig, bits: float, kind: str) -> Planned:
    """Return the plan that stores all matrices with so many bits a weight: where no plugin is there to plan."""
    tensors = {
        name: (kind, math.ceil(math.prod(shape) * bits / 8)) if len(shape) > 1 else ("F32", 4 * math.prod(shape))
        for name, shape in tensor_shapes(config).items()
    }
    return Planned(tensors, {})


@functools.cache
def _slots(config: ModelConfig) -> tuple[Slot, ...]:
    kept = find_precision(_KEPT)
    return tuple(Slot(name, name, _unread(name, shape), kept) for name, shape in tensor_shapes(config).items())


def slots(config: ModelConfig) -> Sequence[Slot]:
    """The slots of a model's canonical tensors; their values cannot be read."""
    return _slots(config)


def _unread(name: str, shape: tuple[int, ...]) -> Tensor:
    def refuse(*rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        raise EdgekitError(f"{name}: a plan has no values")

    return Tensor(name, shape, "float16", refuse)


def stored(precision: Precision, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor in a precision, with its scales; an estimate where rows share bytes."""
    block = precision.block or 1
    columns = -(-shape[-1] // block) * block if shape else 1
    weights = math.prod(shape[:-1]) * columns
    scales = 4 * math.prod(shape[:-1]) if precision.granularity == "channel" else 0
    return math.ceil(weights * float(precision.bits_per_weight) / 8) + scales


__all__ = ["Planned", "planned", "planned_with", "slots", "stored", "uniform"]
