"""LoRA adapters by name: loaded beside the model, and computed for the texts that ask for them.

    y = W x + sum over the adapters of (scale * own scale) * B (A x)

The weights stay as they are, quantized or not. The files are mlx-lm's; see `edgekit_mlx.adapters`.

Source: Hu et al., arXiv:2106.09685; mlx-lm 0.32.2, ``tuner/lora.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import Tensor
from edgekit_mlx.adapters import Adapter, read_adapter
from edgekit_mlx.library import nn, to_mlx, tree_unflatten

#: Adapters by name, and the scale of each.
Lora = tuple[tuple[str, float], ...]
_FUSE = "fuse it (edgekit fuse)"


@attrs.define(eq=False)
class Active:
    """The adapters of a module, which all of its layers share.

    Attributes:
        lora: those to compute with now.
        changes: lora_a [in, rank], lora_b [rank, out] and the adapter's own scale, by adapter and layer.
    """

    lora: Lora = ()
    changes: dict[tuple[str, str], tuple[Any, Any, float]] = attrs.field(factory=dict)


@functools.cache
def _layer() -> Any:
    """Return the class of a linear layer with adapters; mlx is imported on first use."""

    class AdaptedLinear(nn().Module):  # type: ignore[misc]  # mlx has no types
        """A linear layer, and what the active adapters add to it."""

        def __init__(self, linear: Any, name: str, active: Active) -> None:
            super().__init__()
            self.linear = linear
            self._name, self._active = name, active

        def __call__(self, x: Any) -> Any:
            y = self.linear(x)
            for adapter, factor in self._active.lora:
                if change := self._active.changes.get((adapter, self._name)):
                    a, b, scale = change
                    y = y + (factor * scale * ((x @ a) @ b)).astype(y.dtype)
            return y

    return AdaptedLinear


def add_adapters(module: Any, adapters: Mapping[str, str]) -> Active:
    """Load adapters into a module of mlx-lm's; must be called in the thread that computes with it.

    Args:
        module: an ``mlx_lm.models.<type>.Model``; its linear layers that an adapter changes are replaced.
        adapters: the directory of each, by name.

    Returns:
        What chooses the adapters to compute with; none at first.

    Raises:
        MissingFileError, InvalidFileError: a file of an adapter does not exist or is malformed, or a tensor has no
            counterpart in the model or another shape.
        UnsupportedModelError: the adapter is no LoRA, or changes other layers than linear ones.
    """
    active = Active()
    for name, path in adapters.items():
        adapter = read_adapter(Path(path))
        if adapter.method != "lora":
            raise UnsupportedModelError(f"{path}: {adapter.method} is not applied to single texts, LoRA is; {_FUSE}")
        for layer in sorted({key.rpartition(".")[0] for key in adapter.tensors}):
            _add(module, layer, name, adapter, active)
    return active


def _add(module: Any, layer: str, name: str, adapter: Adapter, active: Active) -> None:
    found = dict(module.named_modules()).get(layer)
    if found is None:
        raise InvalidFileError(f"{adapter.path}: it changes {layer:.200}, which the model does not have")
    if not isinstance(found, _layer()):
        if not isinstance(found, nn().Linear | nn().QuantizedLinear):
            kind = type(found).__name__
            raise UnsupportedModelError(
                f"{adapter.path}: it changes {layer:.200}, of type {kind}; single texts get LoRA of linear layers; "
                f"{_FUSE}"
            )
        found = _layer()(found, layer, active)
        module.update_modules(tree_unflatten()([(layer, found)]))
    a, b = (_matrix(adapter, f"{layer}.{part}") for part in ("lora_a", "lora_b"))
    rows, cols = _shape(found.linear)
    if a.shape != (cols, a.shape[-1]) or b.shape != (a.shape[-1], rows):
        raise InvalidFileError(
            f"{adapter.path}: {layer:.200} has the factors {list(a.shape)} and {list(b.shape)}, the model's layer is "
            f"[{rows}, {cols}]; it was trained on another model"
        )
    first, second = (to_mlx(np.ascontiguousarray(each.float32())) for each in (a, b))
    active.changes[name, layer] = first, second, adapter.scale


def _matrix(adapter: Adapter, name: str) -> Tensor:
    tensor = adapter.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise InvalidFileError(f"{adapter.path}: {name:.200} is missing or no matrix; train the adapter again")
    return tensor


def _shape(linear: Any) -> tuple[int, int]:
    rows, cols = linear.weight.shape
    return rows, cols * 32 // linear.bits if isinstance(linear, nn().QuantizedLinear) else cols


__all__ = ["Active", "Lora", "add_adapters"]
