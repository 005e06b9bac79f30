"""Stores the keys and values of a prompt in a file, so that a long prompt is computed once.

The file is a safetensors file, written atomically. It holds the arrays of each layer (``<layer>.<place>``) and, in the
metadata under ``edgekit_mlx``, the token ids, the kinds of the layers' caches with their counters, and the identity of
the model. A file of another model, or of the same model in another dtype, is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, UsageError
from edgekit.files.foreign import strict_json
from edgekit.formats import safetensors
from edgekit.tensor import AnyTensor, Tensor
from edgekit.typing import Array
from edgekit_mlx.library import core, from_mlx

KEY = "edgekit_mlx"
_AGAIN = "write it again with save_prompt_cache"


@attrs.frozen(eq=False)
class Kept:
    """The contents of a prompt cache file.

    Attributes:
        cache: mlx-lm's caches, one per layer.
        tokens: the token ids whose keys and values the caches hold.
    """

    cache: list[Any]
    tokens: list[int]


def identity(artifact: Artifact, dtype: str = "") -> dict[str, str]:
    """Return the identity of a model for caches and adapters.

    It holds a hash of the tensors' names, dtypes, sizes and first rows.
    """
    digest = hashlib.sha256()
    for name, tensor in artifact.tensors.items():
        kind = tensor.dtype if isinstance(tensor, Tensor) else tensor.precision.name
        digest.update(f"{name} {kind} {list(tensor.shape)}\n".encode())
        for part in _first_row(tensor):
            digest.update(np.ascontiguousarray(part).tobytes())
    return {"model": digest.hexdigest(), "dtype": dtype}


def _first_row(tensor: AnyTensor) -> Iterable[Array]:
    if isinstance(tensor, Tensor):
        return [tensor.read_rows(0, 1)]
    return tensor.read_parts(0, 1 if tensor.sliceable else tensor.rows).values()


def save(path: Path, cache: list[Any], tokens: list[int], model: dict[str, str]) -> None:
    """Write caches and the token ids whose keys and values they hold.

    Raises:
        ResourceError: the file cannot be written.
    """
    arrays: dict[str, Array] = {}
    layers = [
        {"kind": type(layer).__name__, "state": [_kept(arrays, f"{number}.{i}", v) for i, v in enumerate(layer.state)]}
        for number, layer in enumerate(cache)
    ]
    record = {**model, "tokens": tokens, "layers": layers}
    safetensors.write(path, arrays, {KEY: json.dumps(record)})


def _kept(arrays: dict[str, Array], place: str, value: Any) -> Any:
    """What JSON says of a value of a layer's state: null for an array, which is added to `arrays`."""
    if isinstance(value, core().array):
        arrays[place] = from_mlx(value)
        return None
    if isinstance(value, list | tuple):  # of recurrent layers
        return [_kept(arrays, f"{place}.{i}", each) for i, each in enumerate(value)]
    return value


def load(path: Path, model: dict[str, str], fresh: list[Any]) -> Kept:
    """Read a file into empty caches of the same model.

    Args:
        path: the file, written by `save`.
        model: the model's `identity`.
        fresh: empty caches, one per layer.

    Raises:
        MissingFileError: the file does not exist or cannot be read.
        InvalidFileError: `save` did not write the file, or it is malformed.
        UsageError: the file was written for another model or dtype.
    """
    tensors, metadata = safetensors.open_tensors(path)
    if KEY not in metadata:
        raise InvalidFileError(f"{path}: it is no prompt cache of edgekit; {_AGAIN}")
    record = strict_json(metadata[KEY].encode(), path, f"the metadata {KEY!r}")
    try:
        tokens, layers = record["tokens"], record["layers"]
        recorded = {name: record[name] for name in ("model", "dtype")}
        right = bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)
        kinds = [layer["kind"] for layer in layers]
    except (TypeError, KeyError) as error:
        raise InvalidFileError(f"{path}: its metadata lacks {error}; {_AGAIN}") from error
    if recorded != model:
        what = "another model" if recorded["model"] != model["model"] else f"this model in {recorded['dtype']}"
        raise UsageError(f"{path}: the prompt cache is of {what}; load that one, or {_AGAIN}")
    if not right or kinds != [type(layer).__name__ for layer in fresh]:
        raise InvalidFileError(f"{path}: its tokens or layers are not those of the model; {_AGAIN}")
    for number, (layer, stored) in enumerate(zip(fresh, layers, strict=True)):
        layer.state = _state(path, number, stored["state"], tensors)
    return Kept(fresh, tokens)


def _state(path: Path, number: int, state: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    if not isinstance(state, list):
        raise InvalidFileError(f"{path}: the state of layer {number} is malformed; {_AGAIN}")
    return tuple(_value(path, f"{number}.{place}", value, tensors) for place, value in enumerate(state))


def _value(path: Path, place: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `_kept`."""
    if value is None or type(value) is int:
        return _array(tensors[place]) if place in tensors else value
    if not isinstance(value, list) or place.count(".") > 1:
        number = place.partition(".")[0]
        raise InvalidFileError(f"{path}: the state of layer {number} is malformed; {_AGAIN}")
    return [_value(path, f"{place}.{i}", each, tensors) for i, each in enumerate(value)]


def _array(tensor: Tensor) -> Any:
    mx = core()
    values = mx.array(np.ascontiguousarray(tensor.read()))
    array = values.view(mx.bfloat16) if tensor.dtype == "bfloat16" else values
    mx.eval(array)
    return array


__all__ = ["KEY", "Kept", "identity", "load", "save"]
