"""The files of a Hugging Face directory: which there are, and that none of them leads elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.formats.safetensors import open_tensors, strict_json
from edgekit.tensor import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: What is carried over byte for byte from one directory to the next.
CARRIED = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
#: Patterns of weights in pickles, which are never read.
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: A config.json has a few KiB; a tokenizer.json of 256,000 tokens has 34 MiB.
CONFIG_LIMIT = 4 << 20
TOKENIZER_LIMIT = 256 << 20


@attrs.frozen
class Weights:
    """The tensors of a directory, by the files' own names and in the files' own order, and what they lie in."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def member(directory: Path, name: str) -> Path | None:
    """The directory's file of that name, or None; `name` may come from a foreign file.

    Raises:
        InvalidFileError: the name, or the link of that name, leads out of the directory.
    """
    if name != os.path.basename(name) or name in ("", ".", "..") or any(c in name for c in "\\:\0"):
        raise InvalidFileError(f"{directory}: {name!r} is no plain file name; files lie in the directory itself")
    path = directory / name
    if not path.is_file():
        return None
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    if not any(real.is_relative_to(allowed) for allowed in (home, *_hub_blobs(home))):
        raise InvalidFileError(f"{path}: the link leads out of the directory, to {real}; put the file itself here")
    return path


def _hub_blobs(home: Path) -> tuple[Path, ...]:
    """Where links lead in a directory of the Hugging Face hub's cache, ``models--x--y/snapshots/<revision>``."""
    return (home.parent.parent / "blobs",) if home.parent.name == "snapshots" else ()


def read_bytes(directory: Path, name: str, limit: int) -> bytes | None:
    """A small file's content, or None where it is absent.

    Raises:
        InvalidFileError: larger than `limit` bytes, or a link that leads out of the directory.
    """
    path = member(directory, name)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > limit:
        raise InvalidFileError(f"{path}: larger than {limit:,} bytes; this is no {name} of a model")
    return content


def read_object(directory: Path, name: str, limit: int = CONFIG_LIMIT) -> dict[str, Any] | None:
    """A JSON object, or None where the file is absent.

    Raises:
        InvalidFileError: not strict JSON, no object, too large, or a link that leads out of the directory.
    """
    content = read_bytes(directory, name, limit)
    if content is None:
        return None
    parsed = strict_json(content, directory / name, "the file")
    if not isinstance(parsed, dict):
        raise InvalidFileError(f"{directory / name}: holds no JSON object; fetch it again")
    return parsed


def carried(directory: Path) -> tuple[Path, ...]:
    """The directory's files besides weights."""
    return tuple(path for name in CARRIED if (path := member(directory, name)) is not None)


def open_weights(directory: Path, only: str | None = None) -> Weights:
    """Open the tensors of a directory: of its one file, or of all the shards that its index names.

    Args:
        directory: holds the files.
        only: the name of one file in it; a shard stands for the whole index.

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


def _single(directory: Path) -> str:
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if WEIGHTS in names:
        return WEIGHTS
    if len(names) == 1:
        return names[0]
    if names:
        raise InvalidFileError(
            f"{directory}: holds {len(names)} safetensors files and no {INDEX} that says which belong together; "
            "fetch the index, or open one of the files"
        )
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise refuse_pickle(directory / pickles[0])
    raise MissingFileError(f"{directory}: holds no *.safetensors; fetch the weights")


def refuse_pickle(path: Path) -> InvalidFileError:
    """The error for weights in a pickle."""
    return InvalidFileError(
        f"{path}: reading a pickle can run any program hidden in it, so it is never read; fetch the model's "
        "safetensors files, or convert it where you trust it: "
        "transformers' AutoModel.from_pretrained(...).save_pretrained(...)"
    )


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name -> shard's file name."""
    index = read_object(directory, INDEX, 64 << 20)
    if index is None:
        return None
    shards = index.get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise InvalidFileError(f"{directory / INDEX}: weight_map is no mapping of tensors to files; fetch it again")
    return shards


def _open_shards(directory: Path, index: Mapping[str, str]) -> Weights:
    files, tensors = [], {}
    for name in sorted(set(index.values())):
        path = member(directory, name)
        wanted = {tensor for tensor, shard in index.items() if shard == name}
        if path is None:
            raise MissingFileError(
                f"{directory / name}: the shard is missing; {INDEX} has {len(wanted)} tensors in it, "
                f"such as {min(wanted)}; fetch it"
            )
        found = open_tensors(path)[0]
        _compare(path, wanted, set(found))
        files.append(path)
        tensors.update(found)
    return Weights((*files, directory / INDEX), tensors, {})


def _compare(path: Path, wanted: set[str], found: set[str]) -> None:
    if wanted - found:
        raise InvalidFileError(
            f"{path}: lacks tensor {min(wanted - found)}, which {INDEX} has there; fetch the two again"
        )
    if found - wanted:
        raise InvalidFileError(
            f"{path}: holds tensor {min(found - wanted)}, which {INDEX} does not have there; fetch the two again"
        )
