"""Adapters in mlx-lm's files: the weights that fine-tuning adds to a model, and models with an adapter fused in.

    adapters.safetensors     <module>.lora_a [in, r] and <module>.lora_b [r, out]; DoRA: <module>.m [out] besides;
                             of stacked experts lora_a [experts, r, in] and lora_b [experts, out, r], LoRA alone;
                             full: the trained weights themselves
    adapter_config.json      fine_tune_type, num_layers, lora_parameters {rank, scale, dropout}

    LoRA  W' = W + scale * (a b)^T          DoRA  W' = m * (W + Δ) / |W + Δ|, row by row

A fused model is an `Artifact` whose tensors are computed in float32 when they are read, so that it can be written in
any format and precision, one tensor at a time. `mlx_lm.load(model, adapter_path=…)` reads the same files.

Source: Hu et al., arXiv:2106.09685; Liu et al. (DoRA), arXiv:2402.09353; mlx-lm 0.32.2, ``tuner``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import FAMILIES, Model, ModelConfig
from edgekit.architectures.links import Link
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingFileError, UsageError
from edgekit.files.foreign import member, read_object, shown
from edgekit.formats import safetensors
from edgekit.numerics.smallfloats import float32_to_bfloat16
from edgekit.precision import Precision
from edgekit.recipe import AsIs, Assignment, Plan, Slot
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.typing import F32, Array
from edgekit_mlx.names import mlx_links, prefix_of
from edgekit_mlx.prompt_cache import identity

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
CONFIG_LIMIT = 1 << 20
METHODS = ("lora", "dora", "full")
_LEAVES = ("lora_a", "lora_b", "m")
_AGAIN = "train it again, or take both files from one place"


@attrs.frozen(eq=False)
class Adapter:
    """A trained adapter.

    Attributes:
        path: the adapter's directory.
        method: ``lora``, ``dora`` or ``full``.
        scale: the factor of the product of lora_a and lora_b.
        tensors: the tensors, by their names in the file.
        model: the identity of the model that the adapter was trained on; empty if mlx-lm wrote it.
    """

    path: Path
    method: str
    scale: float
    tensors: Mapping[str, Tensor]
    model: str


def config_of(options: Any, layers: int, model: str, steps: int) -> dict[str, Any]:
    """Return the contents of adapter_config.json for a run of `edgekit_mlx.training`."""
    lora = {"rank": options.rank, "scale": options.scale, "dropout": options.dropout}
    return {
        "fine_tune_type": options.method,
        "num_layers": layers,
        "lora_parameters": lora if options.method != "full" else None,
        "edgekit": {"model": model, "steps": steps, "seed": options.seed},
    }


def read_adapter(path: Path) -> Adapter:
    """Open an adapter that edgekit or mlx-lm wrote.

    Raises:
        MissingFileError: one of its files does not exist.
        InvalidFileError: a file is malformed; the message names the file and the tensor.
    """
    config = read_object(path, CONFIG, CONFIG_LIMIT)
    weights = member(path, WEIGHTS)
    if config is None or weights is None:
        raise MissingFileError(f"{path / (CONFIG if config is None else WEIGHTS)}: no such file; {_AGAIN}")
    method = config.get("fine_tune_type", "lora")
    if method not in METHODS:
        raise InvalidFileError(f"{path / CONFIG}: fine_tune_type {shown(method)}; there are {', '.join(METHODS)}")
    given = config.get("lora_parameters") or {}
    scale = given.get("scale", 1.0) if isinstance(given, dict) else None
    if method != "full" and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        raise InvalidFileError(f"{path / CONFIG}: lora_parameters has the scale {shown(scale)}; it is a number")
    tensors, _ = safetensors.open_tensors(weights)
    if not tensors:
        raise InvalidFileError(f"{weights}: it holds no tensors; {_AGAIN}")
    odd = [name for name in tensors if method != "full" and name.rpartition(".")[2] not in _LEAVES]
    if odd:
        raise InvalidFileError(
            f"{weights}: tensor {odd[0]:.200} is none of {method}'s ({', '.join(_LEAVES)}); {_AGAIN}"
        )
    mark = config.get("edgekit")
    model = mark.get("model", "") if isinstance(mark, dict) else ""
    return Adapter(path, method, float(scale or 1.0), tensors, str(model))


def fused(artifact: Artifact, adapter: Adapter | Path) -> Artifact:
    """Return the model with an adapter fused in, as an artifact for `edgekit.convert(fused(model, adapter), …)`.

    Args:
        artifact: the model that the adapter was trained on, of any format.
        adapter: the adapter, or the path of its directory.

    Raises:
        UsageError: the adapter was trained on another model.
        InvalidFileError: a tensor of the adapter has no counterpart in the model or another shape.
    """
    opened = read_adapter(adapter) if isinstance(adapter, Path) else adapter
    if opened.model and opened.model != identity(artifact)["model"]:
        raise UsageError(
            f"{opened.path}: the adapter was trained on another model than {artifact.path}; choose that one"
        )
    model = artifact.model
    prefix = prefix_of(model.config)
    links = {prefix + name: (link, number) for link in mlx_links(model.config) for number, name in enumerate(link.hf)}
    tensors = dict(model.tensors)
    for name in sorted({name if opened.method == "full" else _weight(name) for name in opened.tensors}):
        if name not in links:
            raise InvalidFileError(
                f"{opened.path}: it changes {name:.200}, which {artifact.path} does not have; {_AGAIN}"
            )
        tensors |= _changed(tensors, *links[name], name, opened)
    return _with(artifact, tensors, opened)


def _changed(
    tensors: Mapping[str, AnyTensor], link: Link, number: int, name: str, adapter: Adapter
) -> dict[str, AnyTensor]:
    """Return the canonical tensors of a link, with what the adapter says of one of mlx-lm's tensors."""
    role = link.canonical[0]
    if adapter.method == "full" and role.endswith("_norm.weight"):
        return {role: _replaced(tensors[role], adapter.tensors[name], _offset(link), adapter)}
    held = list(link.write(tuple(tensors[each] for each in link.canonical)))
    if adapter.method == "full":
        held[number] = _replaced(held[number], adapter.tensors[name], 0.0, adapter)
    else:
        add = _added if len(held[number].shape) < 3 else _added_to_experts
        held[number] = add(held[number], name.removesuffix(".weight"), adapter)
    return dict(zip(link.canonical, link.read(tuple(held)), strict=True))


def _weight(name: str) -> str:
    return f"{name.rpartition('.')[0]}.weight"


def _offset(link: Link) -> float:
    """Return what the model adds to a norm's stored weight: 1 in Gemma (``1 + weight``), else 0."""
    zero = Tensor.of(link.canonical[0], np.zeros(1, np.float32))
    return -float(link.write((zero,))[0].float32().reshape(-1)[0])


def _with(artifact: Artifact, tensors: dict[str, AnyTensor], adapter: Adapter) -> Artifact:
    changed = Model(artifact.model.config, tensors)
    renamed = _own(artifact, tensors) if artifact.format in ("hf", "mlx") else dict(tensors)
    files = (*artifact.files, adapter.path / WEIGHTS, adapter.path / CONFIG)
    result = attrs.evolve(artifact, tensors=renamed, files=files, load_model=lambda: changed, manifest=None)
    # A model fused from a GGUF file must not keep format and metadata: a writer would copy the tensors of the file.
    return result if artifact.format in ("hf", "mlx") else attrs.evolve(result, format="fused", config={})


def _own(artifact: Artifact, tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    """Return the artifact's tensors by their own names, those that changed replaced."""
    before, own = artifact.model, dict(artifact.tensors)
    prefix = prefix_of(before.config) if artifact.format == "mlx" else ""
    links = mlx_links(before.config)
    if artifact.format == "hf":
        links = FAMILIES[before.config.family].links(before.config, own.keys())
    for link in links:
        if any(tensors[name] is not before.tensors[name] for name in link.canonical):
            made = link.write(tuple(tensors[name] for name in link.canonical))
            own |= {prefix + name: each for name, each in zip(link.hf, made, strict=True) if prefix + name in own}
    return own


def _replaced(base: AnyTensor, learned: Tensor, offset: float, adapter: Adapter) -> Tensor:
    """Return a tensor with the learned weights plus `offset`, in the dtype of the base tensor that it replaces."""
    dtype = _dtype(base)
    _fit(learned, tuple(base.shape), adapter)

    def read_rows(start: int, stop: int) -> Array:
        return _narrow(learned.float32(start, stop) + np.float32(offset), dtype)

    return Tensor(base.name, base.shape, dtype, read_rows)


def _added(base: AnyTensor, module: str, adapter: Adapter) -> Tensor:
    """Return a tensor with a module's weight plus the LoRA or DoRA update, in the dtype of the base."""
    dtype = _dtype(base)
    rows, cols = base.shape
    a, b, m = _factors(module, adapter, rows, cols)

    def read_rows(start: int, stop: int) -> Array:
        values = base.float32(start, stop) + np.float32(adapter.scale) * (b[:, start:stop].T @ a.T)
        if m is not None:
            values *= (m[start:stop] / np.sqrt(np.square(values).sum(axis=1, dtype=np.float32)))[:, None]
        return _narrow(values, dtype)

    return Tensor(base.name, base.shape, dtype, read_rows)


def _added_to_experts(base: AnyTensor, module: str, adapter: Adapter) -> Tensor:
    """Return a stack [experts, rows, cols] with the LoRA update of each expert, in the dtype of the base."""
    dtype, (experts, rows, cols) = _dtype(base), base.shape
    a, b = _leaves(module, adapter, ("lora_a", "lora_b"))
    rank = a.shape[1] if len(a.shape) == 3 else 0
    _fit(a, (experts, rank, cols), adapter)
    _fit(b, (experts, rows, rank), adapter)

    def read_rows(start: int, stop: int) -> Array:
        values = base.float32(start, stop)
        for expert in range(start // rows, -(-stop // rows)):
            low, high = max(start, expert * rows), min(stop, (expert + 1) * rows)
            product = b.float32(low, high) @ a.float32(expert * rank, (expert + 1) * rank)
            values[low - start : high - start] += np.float32(adapter.scale) * product
        return _narrow(values, dtype)

    return Tensor(base.name, base.shape, dtype, read_rows)


def _leaves(module: str, adapter: Adapter, names: Sequence[str]) -> list[Tensor]:
    """Return tensors of a module.

    Raises:
        InvalidFileError: one is missing.
    """
    missing = [name for name in names if f"{module}.{name}" not in adapter.tensors]
    if missing:
        raise InvalidFileError(f"{adapter.path / WEIGHTS}: {module}.{missing[0]} is missing; {_AGAIN}")
    return [adapter.tensors[f"{module}.{name}"] for name in names]


def _factors(module: str, adapter: Adapter, rows: int, cols: int) -> tuple[F32, F32, F32 | None]:
    """Return lora_a [cols, rank], lora_b [rank, rows], and DoRA's m [rows] (None for LoRA), float32."""
    a, b, *magnitudes = _leaves(module, adapter, _LEAVES[: 3 if adapter.method == "dora" else 2])
    rank = a.shape[-1]
    _fit(a, (cols, rank), adapter)
    _fit(b, (rank, rows), adapter)
    if not magnitudes:
        return a.float32(), b.float32(), None
    (m,) = magnitudes
    _fit(m, (rows,), adapter)
    return a.float32(), b.float32(), m.float32().reshape(-1)


def _fit(tensor: Tensor, shape: tuple[int, ...], adapter: Adapter) -> None:
    if tensor.shape != shape:
        raise InvalidFileError(
            f"{adapter.path / WEIGHTS}: {tensor.name:.200} has shape {list(tensor.shape)}, the model takes "
            f"{list(shape)}; it was trained on another model"
        )


def _dtype(base: AnyTensor) -> str:
    """Return the dtype in which to store a fused tensor: that of the base's floats, or of its scales if quantized.

    It is ``float16``, ``bfloat16`` or ``float32``.
    """
    if isinstance(base, Tensor):
        return base.dtype if base.dtype in ("float16", "bfloat16") else "float32"
    scales = base.read_parts(0, 1 if base.sliceable else base.rows).get("scales")
    name = scales.dtype.name if scales is not None and base.precision.scale_dtype == "source" else ""
    return name if name in ("float16", "bfloat16") else "float32"


def _narrow(values: F32, dtype: str) -> Array:
    if dtype == "bfloat16":
        return float32_to_bfloat16(np.ascontiguousarray(values))
    return values.astype(dtype, copy=False)


@attrs.frozen
class AsBefore:
    """A recipe for fused models: each matrix gets the precision that it had before; see `edgekit.recipe.Recipe`.

    Attributes:
        precisions: the precisions of the source's quantized matrices, by canonical name.
    """

    precisions: Mapping[str, Precision]

    name = "as before"

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign every slot its previous precision; slots that were not quantized stay as they are."""
        plain = AsIs().plan(slots, config)
        return Plan(self.name, tuple(self._again(line) for line in plain))

    def _again(self, line: Assignment) -> Assignment:
        precision = self.precisions.get(line.role)
        return line if precision is None else attrs.evolve(line, precision=precision, reason="as before fine-tuning")


def as_before(artifact: Artifact) -> AsBefore:
    """Return the recipe that gives a fused model the precisions of `artifact`, which the adapter was trained on."""
    precisions = {r: t.precision for r, t in artifact.model.tensors.items() if isinstance(t, EncodedTensor)}
    return AsBefore(precisions)


def to_json(config: Mapping[str, Any]) -> bytes:
    """Return the bytes of adapter_config.json; they are the same for equal contents."""
    return (json.dumps(config, indent=4, sort_keys=True) + "\n").encode()


__all__ = [
    "CONFIG",
    "METHODS",
    "WEIGHTS",
    "Adapter",
    "AsBefore",
    "as_before",
    "config_of",
    "fused",
    "read_adapter",
    "to_json",
]
