"""Which tensors a model has, by their canonical names, and of what shapes."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._families import FAMILIES
from edgekit.architectures.mixers import Shape
from edgekit.architectures.pooled import Pooled
from edgekit.errors import InvalidFileError
from edgekit.tensor import AnyTensor

#: How many names an error lists before it only counts.
LISTED = 4


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of such a model, in the order in which the forward pass meets them.

    Shapes are numpy's: [out, in] for a weight matrix.
    """
    network = FAMILIES[config.family].network(config)
    return {**dict(network.shapes()), **dict(Pooled.of(config).shapes(network.width))}


def check_tensors(
    config: ModelConfig,
    tensors: Mapping[str, AnyTensor],
    where: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Refuse a model in which a tensor is missing, odd or too many; reads no values.

    Args:
        config: the model's hyper-parameters.
        tensors: by canonical name.
        where: the file, for the error's message.
        names: the file's own name of each canonical one, for the message; canonical names without it.

    Raises:
        InvalidFileError: names the tensors, what came and what was expected.
    """
    names = names or {}
    shapes = tensor_shapes(config)
    refuse_missing([names.get(name, name) for name in shapes if name not in tensors], len(shapes), where)
    refuse_odd([tensors[name].name for name in tensors if name not in shapes], config.family, where)
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise InvalidFileError(
                f"{where}: tensor {tensors[name].name} has shape {list(tensors[name].shape)}, "
                f"the configuration asks for {list(shape)}; the two do not belong together"
            )


def refuse_missing(missing: list[str], count: int, where: str) -> None:
    """Refuse a file that lacks tensors, by their names in the file, of so many that it should have."""
    if missing:
        cure = (
            f"{count - len(missing)} of {count} are there: weights and configuration are of different "
            "models, or were saved in part; take both from one place"
        )
        raise InvalidFileError(f"{where}: tensors are missing: {_some(missing)}; {cure}")


def refuse_odd(odd: list[str], family: str, where: str) -> None:
    """Refuse a file with tensors that no model of the family has."""
    if odd:
        raise InvalidFileError(f"{where}: no {family} model has the tensors {_some(odd)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
