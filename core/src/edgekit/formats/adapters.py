"""Adapters: low-rank changes to the matrices of a model, as peft trains and stores them (LoRA and DoRA).

A directory holds ``adapter_config.json`` and ``adapter_model.safetensors``::

    tensor                                      shape                holds
    base_model.model.M.lora_A.weight            [r, in]              A of a linear layer M
    base_model.model.M.lora_B.weight            [out, r]             B
    base_model.model.M.lora_B.bias              [out]                what is added to M's bias, times the scale
    base_model.model.M.lora_embedding_A         [r, rows]            A of an embedding
    base_model.model.M.lora_embedding_B         [width, r]           B
    base_model.model.M.lora_magnitude_vector    [out], [width]       DoRA's length of each row; an embedding's columns
    base_model.model.M.weight, .bias            as M's               what replaces M's (``modules_to_save``, ``bias``)

    LoRA     W + s B A              s = alpha / r, or alpha / sqrt(r) with ``use_rslora``
    DoRA     m (W + s B A) / |W + s B A|, row by row
    embedding                       W + s (B A)^T; DoRA column by column

r and alpha are those of the first key of ``rank_pattern`` and ``alpha_pattern`` that matches the module's name, else
the adapter's own. With ``fan_in_fan_out`` W is stored [in, out] (GPT-2).

Sources: peft 0.21, ``tuners/lora/layer.py`` and ``variants.py``, ``utils/other.py`` (`get_pattern_key`); E. Hu et al.,
"LoRA", ICLR 2022 (arXiv:2106.09685); S. Liu et al., "DoRA", ICML 2024 (arXiv:2402.09353); D. Kalajdzievski, "A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023 (arXiv:2312.03732).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.files.foreign import member, read_object, shown
from edgekit.formats import _hf_files as files
from edgekit.formats._patterns import compiled
from edgekit.formats.safetensors import open_tensors
from edgekit.tensor import AnyTensor, Tensor, holds_floats
from edgekit.typing import F32

#: Fields of adapter_config.json that are read, then those on which the stored matrices do not depend.
READ = (
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "use_dora",
    "use_rslora",
)
IGNORED = (
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
_PREFIX = "base_model.model."
#: After which a tensor's name may have the adapter's own.
_NAMED = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "modules_to_save")
#: Of tensors that are parts of a change.
_ENDS = (
    *(".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_embedding_A", ".lora_embedding_B"),
    *(".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
)


@attrs.frozen(eq=False)
class LowRank:
    """A low-rank change to one matrix.

    Attributes:
        module: what it changes, by the model's own name without ``.weight``.
        a: [r, in]; of an embedding [r, rows].
        b: [out, r]; of an embedding [width, r].
        scale: what the product is multiplied with.
        magnitude: [out], of an embedding [width], DoRA's; None of LoRA.
        bias: [out], added to the module's bias, times the scale; None without.
        embedding: whether the matrix is looked up by row.
        turned: whether the matrix may be stored [in, out].
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    embedding: bool = False
    turned: bool = False

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix that it changes, unless that is turned."""
        rows, cols = self.b.shape[0], self.a.shape[1]
        return (cols, rows) if self.embedding else (rows, cols)

    def delta(self, start: int, stop: int, transposed: bool = False) -> F32:
        """Return rows ``start:stop`` of what is added, scale included; of its transpose if `transposed`."""
        if self.embedding or transposed:
            product = self.a.float32().T[start:stop] @ self.b.float32().T
        else:
            product = self.b.float32(start, stop) @ self.a.float32()
        return np.asarray(product * np.float32(self.scale), np.float32)


@attrs.frozen(eq=False)
class Adapter:
    """An adapter.

    Attributes:
        path: its directory.
        files: its configuration and weights.
        base: the name of the model that it was trained on; empty where it says none.
        changes: by module.
        replaced: tensors of the model that it stores whole, by the model's names.
        alpha: the adapter's own, which `changes` have in their scales.
    """

    path: Path
    files: tuple[Path, ...]
    base: str
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]
    alpha: float

    @property
    def kind(self) -> str:
        """LoRA or DoRA."""
        return "DoRA" if any(change.magnitude is not None for change in self.changes.values()) else "LoRA"


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open an adapter's directory, or a file in it; reads no values.

    Raises:
        MissingFileError: its configuration or its weights do not exist.
        UnsupportedModelError: no LoRA or DoRA, or a field of its configuration is not understood.
        InvalidFileError: malformed, or a part is missing or of the wrong shape.
    """
    where = Path(path)
    directory = where if where.is_dir() else where.parent
    config = read_object(directory, files.ADAPTER, files.CONFIG_LIMIT)
    weights = member(directory, files.ADAPTER_WEIGHTS[0])
    if config is None:
        raise MissingFileError(f"{directory / files.ADAPTER}: no such file; give the directory of an adapter of peft's")
    if weights is None:
        pickle = member(directory, files.ADAPTER_WEIGHTS[1])
        if pickle is not None:
            raise files.refuse_pickle(pickle)
        raise MissingFileError(f"{directory / files.ADAPTER_WEIGHTS[0]}: no such file; fetch the adapter's weights")
    settings = _Settings(config, str(directory))
    settings.check()
    tensors = {_own_name(name): tensor for name, tensor in open_tensors(weights)[0].items()}
    changes = {module: _change(module, tensors, settings) for module in _modules(tensors)}
    return Adapter(
        path=directory,
        files=(weights, directory / files.ADAPTER),
        base=base if isinstance(base := config.get("base_model_name_or_path"), str) else "",
        changes=changes,
        replaced=dict(_replaced(tensors, settings)),
        alpha=settings.number("lora_alpha", 8.0),
    )


def _own_name(name: str) -> str:
    """Return a tensor's name without what peft puts before it, and without an adapter's name in it."""
    module = name.removeprefix(_PREFIX)
    for part in _NAMED:
        module = module.replace(f".{part}.default", f".{part}")
    return module


@attrs.frozen
class _Settings:
    """An adapter_config.json."""

    values: Mapping[str, object]
    where: str

    def check(self) -> None:
        """Raise if it is no LoRA, or if it has a field that is not understood."""
        kind = self.values.get("peft_type", "LORA")
        if kind != "LORA":
            raise UnsupportedModelError(
                f"{self.where}: peft_type is {shown(kind)}; merged are LORA and its DoRA; merge it with peft's "
                "merge_and_unload()"
            )
        for key, value in self.values.items():
            if key not in READ and key not in IGNORED and value not in (None, False, [], {}):
                raise UnsupportedModelError(
                    f"{self.where}: adapter_config.json has the field {shown(key)} ({shown(value)}), which is not "
                    "understood; merge it with peft's merge_and_unload()"
                )

    def number(self, key: str, default: float) -> float:
        """Return a finite number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
            raise InvalidFileError(f"{self.where}: {key} is {shown(value)}, a finite number is needed; fetch it again")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a switch."""
        return self.values.get(key) is True

    def of(self, key: str, module: str, default: float) -> float:
        """Return the number that a table of patterns has for a module; the first pattern that matches decides."""
        table = self.values.get(key) or {}
        if not isinstance(table, Mapping):
            raise InvalidFileError(f"{self.where}: {key} is {shown(table)}, an object is needed; fetch it again")
        for pattern, value in table.items():
            expression = compiled(rf"(.*\.)?({pattern})$")
            if expression is None:
                raise UnsupportedModelError(
                    f"{self.where}: {key} has the pattern {shown(pattern)}, which is not followed"
                )
            if expression.match(module):
                return _Settings({key: value}, self.where).number(key, default)
        return default


def _modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the modules that are changed, in the order of the file."""
    return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in tensors if name.endswith(_ENDS)))


def _change(module: str, tensors: Mapping[str, Tensor], settings: _Settings) -> LowRank:
    embedding = f"{module}.lora_embedding_A" in tensors
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    a, b = (_matrix(f"{module}.{name}", tensors, settings.where) for name in names)
    rank, alpha = a.shape[0], settings.of("alpha_pattern", module, settings.number("lora_alpha", 8.0))
    expected = settings.of("rank_pattern", module, settings.number("r", rank))
    if rank < 1 or b.shape[1] != rank or rank != expected:
        raise InvalidFileError(
            f"{settings.where}: {module} has A {list(a.shape)} and B {list(b.shape)}, and adapter_config.json says "
            f"that its rank is {expected:g}; they do not belong together, fetch the adapter again"
        )
    scale = alpha / (math.sqrt(rank) if settings.flag("use_rslora") else rank)
    change = LowRank(
        module,
        a,
        b,
        scale,
        magnitude=_vector(module, ("lora_magnitude_vector", "lora_magnitude_vector.weight"), tensors),
        bias=_vector(module, ("lora_B.bias",), tensors),
        embedding=embedding,
        turned=settings.flag("fan_in_fan_out") and not embedding,
    )
    _check_vectors(change, settings)
    return change


def _check_vectors(change: LowRank, settings: _Settings) -> None:
    if settings.flag("use_dora") and change.magnitude is None:
        raise InvalidFileError(f"{settings.where}: {change.module}.lora_magnitude_vector is missing; fetch it again")
    for vector in (change.magnitude, change.bias):
        if vector is not None and vector.size != change.b.shape[0]:
            raise InvalidFileError(
                f"{settings.where}: {vector.name} has shape {list(vector.shape)}, {change.b.shape[0]} numbers are "
                "needed; fetch the adapter again"
            )


def _matrix(name: str, tensors: Mapping[str, Tensor], where: str) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise InvalidFileError(f"{where}: {name} is missing; the adapter was saved in part, fetch it again")
    if len(tensor.shape) != 2 or not holds_floats(tensor):
        raise UnsupportedModelError(f"{where}: {name} is {tensor.dtype} {list(tensor.shape)}; only matrices are merged")
    return tensor


def _vector(module: str, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Tensor | None:
    return next((tensors[f"{module}.{name}"] for name in names if f"{module}.{name}" in tensors), None)


def _replaced(tensors: Mapping[str, Tensor], settings: _Settings) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that are stored whole; peft adds the unchanged matrix of a changed embedding."""
    for name, tensor in tensors.items():
        if ".base_layer." in name or name.endswith(_ENDS):
            continue
        if ".lora_" in name or ".token_adapter." in name or not name.endswith((".weight", ".bias")):
            raise UnsupportedModelError(
                f"{settings.where}: {shown(name)} is of a kind that is not merged; use peft's merge_and_unload()"
            )
        yield name.replace(".modules_to_save.", "."), tensor


def name_in(name: str, tensors: Mapping[str, AnyTensor]) -> str | None:
    """Return the name under which a checkpoint holds a tensor: with or without ``model.``; None if it does not."""
    return next((each for each in (name, f"model.{name}", name.removeprefix("model.")) if each in tensors), None)


def refuse_another_model(adapter: Adapter, tensors: Mapping[str, AnyTensor], where: str) -> None:
    """Refuse an adapter of another model, told by modules that this one lacks or by shapes.

    Args:
        adapter: the adapter.
        tensors: of the model, by Hugging Face's names.
        where: the model, for messages.

    Raises:
        UnsupportedModelError: says what does not fit.
    """
    of = f", which was trained on {adapter.base}" if adapter.base else ""
    start = f"{adapter.path}: this adapter{of}, is of another model than {where}:"
    names = [f"{module}.weight" for module in adapter.changes] + list(adapter.replaced)
    missing = [name for name in names if name_in(name, tensors) is None and name != "lm_head.weight"]
    if missing:
        raise UnsupportedModelError(
            f"{start} {len(missing)} of the {len(names)} tensors that it changes do not exist there ({missing[0]})"
        )
    for change in adapter.changes.values():
        held = name_in(f"{change.module}.weight", tensors)
        shape = tensors[held].shape if held else ()
        if shape != change.shape and not (change.turned and shape == change.shape[::-1]):
            needed = list(change.shape)
            raise UnsupportedModelError(
                f"{start} {change.module} has shape {list(shape)}, the adapter changes {needed}"
            )
    for name, tensor in adapter.replaced.items():
        held = name_in(name, tensors)
        if held is not None and tensors[held].shape != tensor.shape:
            raise UnsupportedModelError(
                f"{start} {name} has shape {list(tensors[held].shape)}, the adapter replaces it by "
                f"{list(tensor.shape)}; where it adds tokens, resize the model's embedding first (transformers' "
                "resize_token_embeddings)"
            )


__all__ = ["Adapter", "LowRank", "name_in", "open_adapter", "refuse_another_model"]
