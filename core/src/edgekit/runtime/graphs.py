"""What the runtimes of compiled graphs share: the inputs of a graph, checked, and a decoder that reuses its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.architectures.rope import turns_change
from edgekit.errors import UsageError
from edgekit.typing import F32, I64, Array


@attrs.frozen
class Port:
    """An input of a graph.

    Attributes:
        element: the element type, as the framework names it.
        shape: sizes of the dimensions, outermost first; None for one of any size.
        dtype: the numpy dtype that it takes; None if any is passed on.
    """

    element: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any] | None


def checked_inputs(inputs: Mapping[str, Array], ports: Mapping[str, Port], where: Path) -> dict[str, Array]:
    """Return the inputs of a graph as contiguous arrays, in the order of its ports.

    Args:
        inputs: name -> array.
        ports: the graph's inputs by name.
        where: the graph's file, for messages.

    Raises:
        UsageError: an input is missing or unknown, or has a type or shape that the graph does not take.
    """
    known = ", ".join(ports)
    for name in inputs:
        if name not in ports:
            raise UsageError(f"{where}: it has no input {name!r}; it has {known}")
    for name, port in ports.items():
        if name not in inputs:
            raise UsageError(f"{where}: input {name!r} is missing; the inputs are {known}")
        _check(np.asarray(inputs[name]), port, f"{where}: input {name!r}")
    return {name: np.ascontiguousarray(inputs[name]) for name in ports}


def _check(array: Array, port: Port, where: str) -> None:
    if port.dtype is not None and port.dtype != array.dtype:
        raise UsageError(f"{where} is {array.dtype}, the graph takes {port.element}; convert it")
    fits = len(port.shape) == array.ndim and all(
        wanted in (None, size) for wanted, size in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        allowed = ", ".join("any" if size is None else str(size) for size in port.shape)
        raise UsageError(f"{where} has shape {list(array.shape)}, the graph takes [{allowed}]")


class DecoderGraph(ABC):
    """A decoder's graph with states, and the token ids that they hold; derived classes compute a step.

    Attributes:
        seen: the token ids that the states hold.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []

    @abstractmethod
    def step(self, ids: I64) -> F32:
        """Return the first output, float32, for new token ids [batch, n] after those in the states."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the states."""

    def forget(self) -> None:
        """Reset the states, and what is known of them."""
        self.seen.clear()
        self.reset()

    def after(self, ids: list[int], config: ModelConfig) -> F32:
        """Return the logits after the ids, float32 [vocab]; reuses the states if they hold the beginning of the ids."""
        seen = len(self.seen)
        goes_on = seen < len(ids) and ids[:seen] == self.seen
        if not goes_on or turns_change(config, seen, len(ids)):
            self.forget()
            seen = 0
        logits: F32 = self.step(np.array([ids[seen:]], np.int64))[0, -1]
        self.seen = list(ids)
        return logits

    def step_inputs(self, ids: I64) -> dict[str, I64]:
        """Return the inputs of a step without padding: the ids, a mask over all tokens, and the new ones' positions."""
        before = len(self.seen)
        total = before + ids.shape[1]
        return {
            "input_ids": ids,
            "attention_mask": np.ones((len(ids), total), np.int64),
            "position_ids": np.broadcast_to(np.arange(before, total, dtype=np.int64), ids.shape),
        }


__all__ = ["DecoderGraph", "Port", "checked_inputs"]
