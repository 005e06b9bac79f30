"""Checkpoints of a training run: everything that its next step depends on, in one file that is replaced atomically.

    weights.<name>      the trained parameters
    optimizer.<name>    the optimizer's state
    metadata            the step, the losses so far, and the run: model, data, options

Dropout depends only on the seed and the step, so that a run resumed from a checkpoint ends with the same weights as an
uninterrupted one. A checkpoint of another model, other data or other options is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, UsageError
from edgekit.files.foreign import strict_json
from edgekit.formats import safetensors
from edgekit.tensor import Tensor
from edgekit_mlx.library import core, from_mlx

NAME = "checkpoint.safetensors"
KEY = "edgekit_mlx_training"


@attrs.frozen(eq=False)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        step: number of completed steps.
        training: (step, training loss) of each report so far.
        validation: (step, validation loss) of each report so far.
        tokens: number of tokens trained so far.
        pending: the sum of losses and the number of tokens since the last report.
        weights, optimizer: the trained parameters and the optimizer's state, by dotted name.
    """

    step: int
    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    tokens: int
    pending: tuple[float, int]
    weights: Mapping[str, Any]
    optimizer: Mapping[str, Any]


def save(path: Path, checkpoint: Checkpoint, run: Mapping[str, Any]) -> None:
    """Write a checkpoint, replacing the previous one.

    Raises:
        ResourceError: the file cannot be written; the previous checkpoint is kept.
    """
    arrays = {f"weights.{name}": from_mlx(value) for name, value in checkpoint.weights.items()}
    arrays |= {f"optimizer.{name}": from_mlx(value) for name, value in checkpoint.optimizer.items()}
    record = {
        "run": run,
        "step": checkpoint.step,
        "training": checkpoint.training,
        "validation": checkpoint.validation,
        "tokens": checkpoint.tokens,
        "pending": checkpoint.pending,
    }
    safetensors.write(path, arrays, {KEY: json.dumps(record, sort_keys=True)})


def load(path: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint of a run; None if the file does not exist.

    Args:
        path: the checkpoint's file.
        run: the identity of the run, as it was given to `save`.

    Raises:
        UsageError: the checkpoint belongs to another run; the message names what differs.
        InvalidFileError: the file is malformed.
    """
    if not path.is_file():
        return None
    tensors, metadata = safetensors.open_tensors(path)
    again = "delete it, or restart=True"
    try:
        record = strict_json(metadata[KEY].encode(), path, f"the metadata {KEY!r}")
        other = sorted(key for key in {*run, *record["run"]} if run.get(key) != record["run"].get(key))
        if other:
            raise UsageError(
                f"{path}: the checkpoint is of another run: {', '.join(other)} differ; choose another directory, or "
                "begin anew with --restart (restart=True)"
            )
        return Checkpoint(
            step=int(record["step"]),
            training=[(int(step), float(loss)) for step, loss in record["training"]],
            validation=[(int(step), float(loss)) for step, loss in record["validation"]],
            tokens=int(record["tokens"]),
            pending=(float(record["pending"][0]), int(record["pending"][1])),
            weights=_arrays(tensors, "weights."),
            optimizer=_arrays(tensors, "optimizer."),
        )
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidFileError(f"{path}: no checkpoint of edgekit's ({error!s:.200}); {again}") from error


def _arrays(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): _array(tensor) for name, tensor in tensors.items() if name.startswith(prefix)}


def _array(tensor: Tensor) -> Any:
    mx = core()
    values = mx.array(np.ascontiguousarray(tensor.read()))
    return values.view(mx.bfloat16) if tensor.dtype == "bfloat16" else values


__all__ = ["KEY", "NAME", "Checkpoint", "load", "save"]
