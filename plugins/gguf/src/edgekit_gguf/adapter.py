"""Adapters in llama.cpp's form: LoRA matrices that it adds to a model's while it computes.

| key                    | value                                                                    |
|------------------------|--------------------------------------------------------------------------|
| `general.type`         | ``adapter``                                                              |
| `general.architecture` | the model's, which llama.cpp compares                                    |
| `adapter.type`         | ``lora``                                                                 |
| `adapter.lora.alpha`   | alpha; the product is scaled with alpha / r. 0: it is not scaled further |

| tensor              | shape     | holds                                                             |
|---------------------|-----------|-------------------------------------------------------------------|
| `<name>.lora_a`     | [r, in]   | A, under the GGUF name of the matrix that is changed              |
| `<name>.lora_b`     | [out, r]  | B; the rows of queries and keys in llama.cpp's order              |
| `token_embd…lora_a` | [rows, r] | A, turned, of the embedding                                       |
| `token_embd…lora_b` | [width, r]| B                                                                 |

alpha is written where one serves all matrices; else (``use_rslora``, ``alpha_pattern``) each scale is multiplied into
its B, rounded to float32 once. Source: llama.cpp, ``src/llama-adapter.cpp`` (`llama_adapter_lora_init_impl`) and
``src/llama-adapter.h`` (`get_scale`), as llama-cpp-python 0.3.36 has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit.architectures import Model
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, UnsupportedModelError, UsageError
from edgekit.files.atomic import write_atomic
from edgekit.files.guard import refuse_harm
from edgekit.formats.adapters import Adapter, name_in, open_adapter, refuse_another_model
from edgekit.pipeline import open_artifact
from edgekit.precision import find_precision
from edgekit.recipe import Assignment, Plan
from edgekit.tensor import Tensor
from edgekit.typing import F32
from edgekit_gguf.metadata import Value, f32, text
from edgekit_gguf.model import gguf_of
from edgekit_gguf.reader import read
from edgekit_gguf.rotary import reorder
from edgekit_gguf.types import ALIGNMENT, BY_NAME
from edgekit_gguf.writer import encode_header

_EMBEDDING = "token_embd.weight"


def write_adapter(
    model: Artifact | str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Adapter:
    """Write an adapter of peft's as a GGUF file, in float32.

    Args:
        model: the model that it belongs to, a Hugging Face directory; only its configuration and its tensors' names and
            shapes are read.
        adapter: the adapter's directory.
        to: the file to write.
        overwrite: replace a file that is not an adapter.

    Returns:
        The adapter that was read.

    Raises:
        UnsupportedModelError: the adapter is of another model, or does what llama.cpp's adapters cannot: DoRA, biases,
            tensors that are replaced, an embedding that is the output matrix too.
        UsageError: the target is a source, or is no adapter.
        InvalidFileError, MissingFileError: about the sources.
        ResourceError, LockedError: about the target.
    """
    source = model if isinstance(model, Artifact) else open_artifact(model)
    found, target = open_adapter(adapter), Path(to)
    refuse_harm(target, [*source.reads, found.path, *found.files])
    if not overwrite:
        _refuse_overwriting(target)
    if source.format != "hf":
        raise UnsupportedModelError(
            f"{source.path}: an adapter's names are those of its Hugging Face model, this is {source.format}; give "
            "that model's directory"
        )
    refuse_another_model(found, source.tensors, str(source.path))
    _refuse_what_llamacpp_lacks(found, source.model)
    write_atomic(target, _file(source.model, found, list(_tensors(found, source))))
    return found


def _refuse_what_llamacpp_lacks(adapter: Adapter, model: Model) -> None:
    problem = ""
    if any(change.magnitude is not None for change in adapter.changes.values()):
        problem = "it is DoRA, which llama.cpp's adapters do not have"
    elif any(change.bias is not None for change in adapter.changes.values()):
        problem = "it changes biases, which llama.cpp's adapters do not have"
    elif adapter.replaced:
        problem = f"it replaces {next(iter(adapter.replaced))}, which llama.cpp would ignore"
    elif model.config.tied and any(change.embedding for change in adapter.changes.values()):
        problem = "it changes an embedding that is the output matrix too, which llama.cpp cannot"
    if problem:
        raise UnsupportedModelError(f"{adapter.path}: {problem}; merge it into the model (`edgekit merge`)")


def _tensors(adapter: Adapter, source: Artifact) -> Iterator[tuple[str, F32]]:
    """Yield the file's tensors by name."""
    model = source.model
    interleaved, folded = gguf_of(model.config).interleaved, _alpha(adapter) == 0
    for change in adapter.changes.values():
        held = name_in(f"{change.module}.weight", source.tensors) or ""
        role = model.roles.get(held, "")
        if role not in model.tensors or model.tensors[role].shape != change.shape:
            raise UnsupportedModelError(
                f"{adapter.path}: {change.module} is no matrix of its own in GGUF; merge it into the model "
                "(`edgekit merge`)"
            )
        a, b = change.a.float32(), change.b.float32()
        if folded:
            b = b * np.float32(change.scale)
        if interleaved:
            b = reorder(role, Tensor.of(change.b.name, b), model.config, "to_gguf").float32()
        yield f"{role}.lora_a", np.ascontiguousarray(a.T) if role == _EMBEDDING else a
        yield f"{role}.lora_b", b


def _alpha(adapter: Adapter) -> float:
    """Return the alpha that serves all changes; 0 if none does."""
    alphas = {change.scale * change.rank for change in adapter.changes.values()}
    return alphas.pop() if len(alphas) == 1 and adapter.alpha in alphas else 0.0


def _file(model: Model, adapter: Adapter, tensors: list[tuple[str, F32]]) -> bytes:
    metadata: dict[str, Value] = {
        "general.architecture": text(gguf_of(model.config).architecture),
        "general.type": text("adapter"),
        "general.name": text(adapter.path.name),
        "adapter.type": text("lora"),
        "adapter.lora.alpha": f32(_alpha(adapter)),
    }
    float32 = find_precision("float:F32")
    plan = Plan("adapter", tuple(Assignment(name, name, v.shape, float32, "an adapter's") for name, v in tensors))
    header = encode_header(metadata, plan, [BY_NAME["F32"]] * len(plan))
    return header + b"".join(_padded(values) for _, values in tensors)


def _padded(values: F32) -> bytes:
    data = values.astype("<f4").tobytes()
    return data + bytes(-len(data) % ALIGNMENT)


def _refuse_overwriting(target: Path) -> None:
    """Refuse to replace an existing file that is not an adapter."""
    if not target.exists():
        return
    try:
        kind = read(target).metadata.get("general.type")
    except EdgekitError:
        kind = None
    if kind != "adapter":
        raise UsageError(
            f"{target} exists already and is not an adapter; choose another file, or replace it with "
            "--force (overwrite=True)"
        )


__all__ = ["write_adapter"]
