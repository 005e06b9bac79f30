"""The modules that sentence-transformers puts after a model: pooling, dense matrices, normalization.

    modules.json              a list: the model itself, 1_Pooling, 2_Dense …, and 2_Normalize or 4_Normalize
    1_Pooling/config.json     which states count
    2_Dense/config.json       sizes and activation of a matrix, 2_Dense/model.safetensors its linear.weight

Source: sentence-transformers 6.2, ``sentence_transformer/modules``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
import numpy as np

from edgekit.architectures import Model, Pooling
from edgekit.architectures.pooled import FIRST
from edgekit.artifact import Layout
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import member, read_bytes, shown, strict_json
from edgekit.formats.safetensors import Part, build_header, open_tensors, to_bytes
from edgekit.tensor import AnyTensor

MODULES = "modules.json"
CONFIG, WEIGHTS, MATRIX = "config.json", "model.safetensors", "linear.weight"
#: Files of modules besides weights have some hundred bytes.
_LIMIT = 1 << 20
_MOST = 16
_MODES: dict[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
#: Keys of older files, one a mode.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_IDENTITY = "torch.nn.modules.linear.Identity"
_TYPE = "sentence_transformers.models."


def with_modules(model: Model, directory: Path) -> Model:
    """Return the model with the pooling and the matrices that the directory's modules.json asks for.

    Raises:
        UnsupportedModelError: a module, a mode or an activation that edgekit does not compute.
        InvalidFileError: a file is malformed or missing.
    """
    modules = _modules(directory)
    pooling, dense, tensors = None, list[int](), dict[str, AnyTensor]()
    width = model.config.width
    for kind, folder in modules:
        match kind:
            case "Transformer" | "Normalize":
                continue  # embeddings are normalized in any case
            case "Pooling":
                pooling = _pooling(folder)
            case "Dense":
                matrix = _dense(folder, width)
                width = matrix.shape[0]
                tensors[f"dense_{FIRST + len(dense)}.weight"] = matrix
                dense.append(width)
            case _:
                raise UnsupportedModelError(
                    f"{directory / MODULES}: it has a module {shown(kind)}; edgekit computes Transformer, Pooling, "
                    "Dense and Normalize"
                )
    if pooling is None:
        return model
    config = attrs.evolve(model.config, pooling=pooling, dense=tuple(dense))
    return attrs.evolve(model, config=config, tensors={**model.tensors, **tensors})


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """Return the kind and the directory of each module; the first of modules.json is the model itself."""
    content = read_bytes(directory, MODULES, _LIMIT)
    if content is None:
        return []
    entries = strict_json(content, directory / MODULES, "the file")
    entries = entries if isinstance(entries, list) else [None]
    modules = []
    for entry in entries[:_MOST]:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise InvalidFileError(f"{directory / MODULES}: it is no list of modules with a type; fetch it again")
        path = entry.get("path", "")
        if not isinstance(path, str) or path in (".", "..") or any(c in path for c in "/\\:\0"):
            raise InvalidFileError(f"{directory / MODULES}: {shown(path)} is no directory beside it; fetch it again")
        folder = directory / path
        if path and folder.is_symlink():
            raise InvalidFileError(f"{folder}: the link leads out of the directory; put the module itself here")
        modules.append((entry["type"].rpartition(".")[2], folder))
    return modules


def _settings(folder: Path) -> dict[str, Any]:
    content = read_bytes(folder, CONFIG, _LIMIT)
    if content is None:
        raise InvalidFileError(f"{folder / CONFIG}: no such file, and {MODULES} names its directory; fetch it")
    settings = strict_json(content, folder / CONFIG, "the file")
    if not isinstance(settings, dict):
        raise InvalidFileError(f"{folder / CONFIG}: it holds no JSON object; fetch it again")
    return settings


def _pooling(folder: Path) -> Pooling:
    settings = _settings(folder)
    flagged = [mode for key, mode in _FLAGS.items() if settings.get(key)] or ["mean"]
    given = settings.get("pooling_mode", flagged)
    modes = given if isinstance(given, list) else [given]
    if len(modes) != 1 or modes[0] not in _MODES:
        what = " and ".join(map(str, modes))
        raise UnsupportedModelError(
            f"{folder / CONFIG}: it pools by {what:.60}; edgekit computes one of {', '.join(_MODES)}"
        )
    return _MODES[modes[0]]


def _dense(folder: Path, width: int) -> AnyTensor:
    settings = _settings(folder)
    activation = settings.get("activation_function", _IDENTITY)
    if not str(activation).endswith(".Identity") or settings.get("bias", False) is not False:
        _refuse_dense(folder, f"activation {shown(activation)} and bias {settings.get('bias')!r:.10}")
    path = member(folder, WEIGHTS)
    if path is None:
        raise InvalidFileError(f"{folder / WEIGHTS}: no such file, and {MODULES} names its directory; fetch it")
    matrix = open_tensors(path)[0].get(MATRIX)
    if matrix is None or len(matrix.shape) != 2 or matrix.shape[1] != width:
        shape = "is missing" if matrix is None else f"has shape {list(matrix.shape)}"
        raise InvalidFileError(f"{path}: {MATRIX} {shape}; it has to take vectors of {width} elements; fetch it again")
    return matrix


def _refuse_dense(folder: Path, what: str) -> NoReturn:
    raise UnsupportedModelError(f"{folder / CONFIG}: a dense module with {what}; edgekit computes plain matrices alone")


def module_files(layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Name and content of the modules' files: the source's own where it has some, else made for the model."""
    if layout.model is None or layout.model.config.pooling is None:
        return
    source = layout.source.path if layout.source.path.is_dir() else layout.source.path.parent
    modules = [] if layout.source.format == "gguf" else _modules(source)
    yield from _copied(source, modules) if modules else _made(layout.model)


def _copied(source: Path, modules: list[tuple[str, Path]]) -> Iterator[tuple[str, bytes]]:
    yield MODULES, (source / MODULES).read_bytes()
    for _, folder in modules:
        for name in (CONFIG, WEIGHTS):
            if folder != source and (path := member(folder, name)) is not None:
                yield f"{folder.name}/{name}", path.read_bytes()


def _made(model: Model) -> Iterator[tuple[str, bytes]]:
    config, width = model.config, model.config.width
    mode = next(name for name, how in _MODES.items() if how == config.pooling)
    kinds = ["Transformer", "Pooling", *["Dense"] * len(config.dense), "Normalize"]
    entries = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": _TYPE + kind}
        for i, kind in enumerate(kinds)
    ]
    yield MODULES, _json(entries)
    flags = {key: named == mode for key, named in _FLAGS.items()}
    yield f"1_Pooling/{CONFIG}", _json({"word_embedding_dimension": width, **flags})
    for number, rows in enumerate(config.dense, FIRST):
        sizes = {"in_features": width, "out_features": rows, "bias": False, "activation_function": _IDENTITY}
        yield f"{number}_Dense/{CONFIG}", _json(sizes)
        values = np.ascontiguousarray(model.tensors[f"dense_{number}.weight"].float32())
        header = build_header([Part(MATRIX, "float32", values.shape)], {"format": "pt"})
        yield f"{number}_Dense/{WEIGHTS}", header + bytes(to_bytes(values))
        width = rows


def _json(content: Sequence[object] | Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


__all__ = ["module_files", "with_modules"]
