"""The files of a Hugging Face directory: their names and limits; links out of it are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.files.foreign import member, members, read_object
from edgekit.files.guard import CARRIED_FILES
from edgekit.formats import _mistral
from edgekit.formats._packed import quantization_of
from edgekit.formats.safetensors import open_tensors
from edgekit.tensor import Tensor
from edgekit.tokenizer._hf_files import TEMPLATES, template_files

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "edgekit.manifest.json"
#: Files that peft writes beside, or instead of, a model.
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
#: What AutoGPTQ wrote before config.json had a quantization_config.
QUANTIZE_CONFIG = "quantize_config.json"
#: Written by NVIDIA ModelOpt.
MODELOPT_CONFIG = "hf_quant_config.json"
#: Which modules optimum-quanto quantized, and how.
QUANTO_MAP = "quanto_qmap.json"
#: Patterns of weights in pickles, which are never read.
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: A config.json has a few KiB.
CONFIG_LIMIT = 4 << 20
INDEX_LIMIT = 64 << 20
#: Tensors of a model in shards; the largest have some two hundred thousand.
MAX_TENSORS = 1 << 20


@attrs.frozen
class Weights:
    """The tensors of a directory, by their names in the files and in the files' order, and the files that hold them."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def carried(directory: Path) -> tuple[Path, ...]:
    """Return the directory's files other than weights."""
    weights = (path for name in CARRIED_FILES if (path := member(directory, name)) is not None)
    return (*weights, *template_files(directory))


def carried_name(path: Path) -> str | None:
    """Return the name, relative to the directory, under which a file is copied; None if it is not."""
    if path.parent.name == TEMPLATES and path.suffix == ".jinja":
        return f"{TEMPLATES}/{path.name}"
    return path.name if path.name in CARRIED_FILES else None


def open_weights(directory: Path, only: str | None = None) -> Weights:
    """Open the tensors of a directory: of its one file, or of all the shards that its index names.

    Args:
        directory: holds the files.
        only: the name of one file in it; a shard selects all shards of its index.

    Raises:
        MissingFileError: there are no weights, or a shard is missing.
        InvalidFileError: pickles, files without an index, an index that disagrees with its shards, or a file
            that is truncated, corrupt or hostile.
    """
    index = None if only == WEIGHTS else _read_index(directory)
    if index is not None and (only in index.values() or (only is None and not (directory / WEIGHTS).is_file())):
        return _open_shards(directory, index)
    name = only or _single(directory)
    path = member(directory, name)
    if path is None:
        raise MissingFileError(f"{directory / name}: no such file")
    tensors, metadata = open_tensors(path)
    return Weights((path,), tensors, metadata)


def open_consolidated(directory: Path, only: str | None = None) -> Weights:
    """Open the tensors of a directory in Mistral's layout; raises as `open_weights`."""
    index = None if only == _mistral.WEIGHTS else _read_index(directory, _mistral.INDEX)
    if index is not None and not (only is None and (directory / _mistral.WEIGHTS).is_file()):
        return _open_shards(directory, index, _mistral.INDEX)
    path = member(directory, _mistral.WEIGHTS)
    if path is None:
        raise MissingFileError(f"{directory / _mistral.WEIGHTS}: no such file")
    tensors, metadata = open_tensors(path)
    return Weights((path,), tensors, metadata)


def with_quantization(directory: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration; if it says nothing of quantization, with AutoGPTQ's, ModelOpt's or quanto's file."""
    if quantization_of(config):
        return config
    if separate := read_object(directory, QUANTIZE_CONFIG, CONFIG_LIMIT):
        return {**config, "quantization_config": {"quant_method": "gptq", **separate}}
    section = (read_object(directory, MODELOPT_CONFIG, CONFIG_LIMIT) or {}).get("quantization")
    if isinstance(section, dict):
        return {**config, "quantization_config": {"quant_method": "modelopt", **section}}
    if modules := read_object(directory, QUANTO_MAP, CONFIG_LIMIT):
        return {**config, "quantization_config": {"quant_method": "quanto", "modules": modules}}
    return config


def _single(directory: Path) -> str:
    names = [path.name for path in members(directory, "*.safetensors")]
    if WEIGHTS in names:
        return WEIGHTS
    if len(names) == 1:
        return names[0]
    if names:
        raise InvalidFileError(
            f"{directory}: holds {len(names)} safetensors files and no {INDEX} that says which belong together; "
            "fetch the index, or open one of the files"
        )
    if pickles := members(directory, *PICKLES):
        raise refuse_pickle(pickles[0])
    raise MissingFileError(f"{directory}: holds no *.safetensors; fetch the weights")


def refuse_pickle(path: Path) -> InvalidFileError:
    """Return the error for weights in a pickle."""
    return InvalidFileError(
        f"{path}: reading a pickle can run any program hidden in it, so it is never read; fetch the model's "
        "safetensors files, or convert it where you trust it: "
        "transformers' AutoModel.from_pretrained(...).save_pretrained(...)"
    )


def _read_index(directory: Path, name: str = INDEX) -> dict[str, str] | None:
    """Read the index: tensor name -> file name of its shard."""
    index = read_object(directory, name, INDEX_LIMIT)
    if index is None:
        return None
    shards = index.get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise InvalidFileError(f"{directory / name}: weight_map is no mapping of tensors to files; fetch it again")
    if len(shards) > MAX_TENSORS:
        raise InvalidFileError(
            f"{directory / name}: {len(shards):,} tensors; at most {MAX_TENSORS:,} are read, which no model reaches"
        )
    return shards


def _open_shards(directory: Path, index: Mapping[str, str], index_name: str = INDEX) -> Weights:
    files, tensors, metadata = [], {}, dict[str, str]()
    held: dict[str, set[str]] = {}
    for tensor, shard in index.items():
        held.setdefault(shard, set()).add(tensor)
    for name, expected in sorted(held.items()):
        path = member(directory, name)
        if path is None:
            raise MissingFileError(
                f"{directory / name}: the shard is missing; {index_name} has {len(expected)} tensors in it, "
                f"such as {_brief(min(expected))}; fetch it"
            )
        actual, described = open_tensors(path)
        metadata |= described
        _compare(path, expected, set(actual), index_name)
        files.append(path)
        tensors.update(actual)
    return Weights((*files, directory / index_name), tensors, metadata)


def _brief(name: str) -> str:
    return name if len(name) <= 200 else name[:197] + "..."


def _compare(path: Path, expected: set[str], actual: set[str], index: str) -> None:
    if expected - actual:
        raise InvalidFileError(
            f"{path}: lacks tensor {_brief(min(expected - actual))}, which {index} has there; fetch the two again"
        )
    if actual - expected:
        extra = _brief(min(actual - expected))
        raise InvalidFileError(f"{path}: holds tensor {extra}, which {index} does not have there; fetch the two again")
