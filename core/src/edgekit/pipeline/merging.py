"""Merge an adapter into its model: the merged matrices are computed row by row, as they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path, PurePath

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError, counted, option
from edgekit.files.guard import refuse_harm
from edgekit.formats.adapters import Adapter, LowRank, name_in, open_adapter, refuse_another_model
from edgekit.formats.hf import with_tensors
from edgekit.numerics.smallfloats import float32_to_bfloat16
from edgekit.pipeline._conversion import as_artifact, convert, quantize
from edgekit.pipeline._progress import Shown
from edgekit.pipeline._recipes import AnyRecipe
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.typing import F32, Array

_OUTPUT = "lm_head.weight"
#: Elements that are read at once where all rows are needed before the first.
_PIECE = 1 << 20


def merged(
    source: Artifact | str | os.PathLike[str], adapter: str | os.PathLike[str], *, allow_other_base: bool = False
) -> Artifact:
    """Return a model with an adapter merged into it; nothing is written, and values are computed as they are read.

    Args:
        source: the model, a Hugging Face directory.
        adapter: the directory of an adapter of peft's (LoRA, DoRA).
        allow_other_base: merge an adapter that names another model than this one says to be.

    Returns:
        The merged model, to be quantized, converted or loaded as any other. Matrices keep the model's float type, as
        peft's ``merge_and_unload`` leaves them; those that are quantized become float32.

    Raises:
        UnsupportedModelError: the adapter is of another model, or of a kind that is not merged; no Hugging Face model.
        UsageError: the adapter names another model.
        MissingFileError, InvalidFileError: about the adapter.
    """
    model, opened = as_artifact(source), open_adapter(adapter)
    if model.format != "hf":
        raise UnsupportedModelError(
            f"{model.path}: adapters are merged into Hugging Face directories, this is {model.format}; merge into the "
            "model that it was made from, or convert the adapter (`edgekit adapter`) and load both in llama.cpp"
        )
    refuse_another_model(opened, model.tensors, str(model.path))
    if not allow_other_base:
        _refuse_other_name(opened, model)
    changes = _changes(opened, model.tensors)
    tensors = {name: changes.get(name, tensor) for name, tensor in model.tensors.items()}
    config = dict(model.config)
    output = opened.replaced.get(_OUTPUT)
    if output is not None and _OUTPUT not in tensors:  # an output matrix of its own, where the embedding was one
        tensors[_OUTPUT] = attrs.evolve(output, name=_OUTPUT)
        config["tie_word_embeddings"] = False
    return attrs.evolve(
        with_tensors(model, tensors, config, (*model.files, *opened.files)), run_notes={"merged": _sentence(opened)}
    )


def merge(
    source: Artifact | str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    *,
    to: str | os.PathLike[str],
    recipe: AnyRecipe | None = None,
    dtype: str | None = None,
    format: str | None = None,
    allow_other_base: bool = False,
    progress: Shown = None,
    overwrite: bool = False,
    notes: list[str] | None = None,
) -> Artifact:
    """Merge an adapter into its model and write the result, streaming.

    Args:
        source: the model, a Hugging Face directory.
        adapter: the directory of an adapter of peft's (LoRA, DoRA).
        to: the file or directory to write; its suffix decides the format.
        recipe: quantize the merged model with it; None writes floats.
        dtype: as for `convert`, without a recipe.
        format: as for `quantize`.
        allow_other_base: merge an adapter that names another model than this one says to be.
        progress: as for `quantize`.
        overwrite: as for `quantize`.
        notes: as for `quantize`.

    Returns:
        The written artifact. Without a recipe its matrices are what peft's ``merge_and_unload`` computes, up to the
        float32 rounding of the product B A, and where the adapter is stored in 16 bits up to one rounding to them.

    Raises:
        As `merged`, `quantize` and `convert`; and UsageError for a recipe with a dtype.
    """
    model = merged(source, adapter, allow_other_base=allow_other_base)
    where = Path(adapter)
    refuse_harm(Path(to), [where if where.is_dir() else where.parent])
    if recipe is None:
        return convert(model, to, format=format, dtype=dtype, progress=progress, overwrite=overwrite, notes=notes)
    if dtype is not None:
        raise UsageError(f"a recipe and {option('dtype', dtype)} exclude each other; give one of them")
    return quantize(model, recipe, to=to, format=format, progress=progress, overwrite=overwrite, notes=notes)


def _refuse_other_name(adapter: Adapter, model: Artifact) -> None:
    name = model.config.get("_name_or_path")
    if not (isinstance(name, str) and name and adapter.base):
        return
    names = [_short(name), _short(adapter.base)]
    if not (names[0].startswith(names[1]) or names[1].startswith(names[0])):
        raise UsageError(
            f"{adapter.path}: this adapter was trained on {adapter.base}, and {model.path} says that it is {name}; "
            f"merge it into its own model, or if their weights are the same allow it with {option('allow_other_base')}"
        )


def _short(name: str) -> str:
    """Return the last part of a model's name, in lower case and without what publishers add for a quantization."""
    last = PurePath(name.replace("\\", "/")).name.lower()
    for ending in ("-unsloth-bnb-4bit", "-bnb-4bit", "-4bit", "-8bit", "-hf"):
        last = last.removesuffix(ending)
    return last


def _sentence(adapter: Adapter) -> str:
    count = len(adapter.replaced)
    replaced = f" and {counted(count, 'tensor', 'tensors')} replaced" if count else ""
    base = f" of {adapter.base}" if adapter.base else ""
    changed = f"{counted(len(adapter.changes), 'matrix', 'matrices')} changed"
    return f"the {adapter.kind} adapter {adapter.path.name}{base} was merged: {changed}{replaced}"


def _changes(adapter: Adapter, tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    """Return the model's tensors that an adapter changes, as it changes them, by the model's names."""
    changed: dict[str, AnyTensor] = {}
    for key, tensor in adapter.replaced.items():
        name = name_in(key, tensors)
        if name is not None:
            changed[name] = attrs.evolve(tensor, name=name)
    for change in adapter.changes.values():
        name = name_in(f"{change.module}.weight", tensors)
        if name is None:
            raise UnsupportedModelError(
                f"{adapter.path}: {change.module} is changed, and the model has no matrix of its own there (it is "
                "tied); merge it with peft's merge_and_unload()"
            )
        changed[name] = _added(tensors[name], change)
        if change.bias is not None:
            changed |= _biased(change, tensors, adapter)
    return changed


def _added(tensor: AnyTensor, change: LowRank) -> Tensor:
    transposed = change.turned and tensor.shape == change.shape[::-1]

    def rows(start: int, stop: int) -> F32:
        return tensor.float32(start, stop) + change.delta(start, stop, transposed)

    if change.magnitude is None:
        return _as_before(tensor, rows)
    by_column = change.embedding or transposed
    norms = cache(lambda: _column_norms(rows, tensor))

    def scaled(start: int, stop: int) -> F32:
        values, magnitude = rows(start, stop), _magnitude(change)
        if by_column:
            return values * (magnitude / norms())
        norm = np.sqrt(np.sum(values * values, axis=1, dtype=np.float32))
        values *= (magnitude[start:stop] / norm)[:, None]
        return values

    return _as_before(tensor, scaled)


def _magnitude(change: LowRank) -> F32:
    assert change.magnitude is not None
    return change.magnitude.float32().reshape(-1)


def _column_norms(rows: Callable[[int, int], F32], tensor: AnyTensor) -> F32:
    """Return the length of each column, read piece by piece."""
    squares = np.zeros(tensor.shape[-1], np.float64)
    step = max(1, _PIECE // tensor.shape[-1])
    for start in range(0, tensor.rows, step):
        values = rows(start, min(start + step, tensor.rows)).astype(np.float64)
        squares += np.sum(values * values, axis=0)
    norms: F32 = np.sqrt(squares).astype(np.float32)
    return norms


def _biased(change: LowRank, tensors: Mapping[str, AnyTensor], adapter: Adapter) -> dict[str, AnyTensor]:
    name = name_in(f"{change.module}.bias", tensors)
    if name is None or change.bias is None:
        raise UnsupportedModelError(
            f"{adapter.path}: {change.module} gets a bias (lora_bias) where the model has none; it cannot be merged"
        )
    own, more = tensors[name], change.bias.float32() * np.float32(change.scale)

    def rows(start: int, stop: int) -> F32:
        return own.float32(start, stop) + more.reshape(1, -1)

    return {name: _as_before(own, rows)}


def _as_before(tensor: AnyTensor, rows: Callable[[int, int], F32]) -> Tensor:
    """Return float32 rows in the float type of the tensor that they replace; float32 if it was quantized or wider."""
    dtype = "float32" if isinstance(tensor, EncodedTensor) else tensor.dtype
    if dtype == "bfloat16":
        return Tensor(tensor.name, tensor.shape, dtype, lambda start, stop: float32_to_bfloat16(rows(start, stop)))
    if dtype == "float16":
        return Tensor(tensor.name, tensor.shape, dtype, lambda start, stop: _halves(rows(start, stop)))
    return Tensor(tensor.name, tensor.shape, "float32", rows)


def _halves(values: F32) -> Array:
    with np.errstate(over="ignore"):  # what becomes infinite is refused where it is written
        return values.astype(np.float16)


__all__ = ["merge", "merged"]
