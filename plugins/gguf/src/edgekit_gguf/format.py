"""The GGUF format: opening, layout, writing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Layout
from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.files.reader import read_start
from edgekit.manifest import Manifest, read_manifest
from edgekit.recipe import Plan
from edgekit.tensor import AnyTensor
from edgekit.typing import F32
from edgekit_gguf.layout import layout
from edgekit_gguf.model import load_model
from edgekit_gguf.reader import GgufFile, read
from edgekit_gguf.sizes import GgufSizes
from edgekit_gguf.types import MAGIC
from edgekit_gguf.vocab import from_metadata
from edgekit_gguf.writer import GgufWriter

if TYPE_CHECKING:
    from edgekit.evaluation.calibration import Activations

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GgufFormat:
    """Reads GGUF versions 2 and 3, in one file or split; writes version 3. See `edgekit.artifact.Format`."""

    name = "gguf"
    #: The convention whose precisions have short names in this format.
    conventions = ("ggml",)

    def matches(self, path: Path) -> bool:
        """Return whether a file begins with GGUF's magic or has its suffix."""
        if path.suffix == ".gguf" and path.exists() and not path.is_dir():
            return True
        return read_start(path, len(MAGIC)) == MAGIC

    def open(self, path: Path) -> Artifact:
        """Read everything except the tensors' values.

        Raises:
            InvalidFileError: truncated or malformed; names file, key or tensor, byte offset and cure.
            MissingFileError: the file, or a part of a split one, is not there.
        """
        shards = _shards(path)
        first, tensors = shards[0], _merged(shards)

        return Artifact(
            path=path,
            format=self.name,
            files=tuple(shard.path for shard in shards),
            config=first.metadata,
            tensors=tensors,
            load_model=cache(lambda: load_model(path, first.metadata, tensors)),
            load_tokenizer=cache(lambda: from_metadata(first.metadata, path)),
            manifest=read_manifest(path),
        )

    def layout(self, source: Artifact) -> Layout:
        """Return what a GGUF file stores for a source.

        Raises:
            UnsupportedModelError: the family is unknown, or has a feature that GGUF cannot express.
        """
        return layout(source)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> GgufWriter:
        """Start or resume writing; raises as `GgufWriter` does."""
        return GgufWriter(path, layout, plan, manifest)

    def sizes(self, layout: Layout) -> GgufSizes:
        """What the tensors take in a file of that layout."""
        return GgufSizes(layout)

    def read_importance(self, path: Path) -> dict[str, F32]:
        """Read an importance matrix; see `edgekit.evaluation.calibration.read_importance`."""
        from edgekit_gguf.imatrix import read_imatrix  # only here: calibrating takes the runtimes and chat

        return read_imatrix(path)

    def write_importance(self, path: Path, activations: Activations, dataset: str = "") -> None:
        """Write an importance matrix; see `edgekit.evaluation.calibration.write_importance`."""
        from edgekit_gguf.imatrix import write_imatrix

        write_imatrix(path, activations, dataset)


def _shards(path: Path) -> list[GgufFile]:
    """Return the file, or all files of a split model in order."""
    file = read(path)
    count = file.metadata.get("split.count", 1)
    if type(count) is not int or count < 2:
        return [file]
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise InvalidFileError(
            f"{path}: one of {count} parts, but not named <name>-00001-of-{count:05}.gguf; "
            "give the parts their names back"
        )
    names = [path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf") for number in range(1, count + 1)]
    missing = [name.name for name in names if not name.is_file()]
    if missing:
        raise MissingFileError(
            f"{path}: parts are missing: {', '.join(missing[:4])}; put all {count} beside each other"
        )
    return [file if name == path else read(name) for name in names]


def _merged(shards: list[GgufFile]) -> dict[str, AnyTensor]:
    tensors: dict[str, AnyTensor] = {}
    for shard in shards:
        for name, tensor in shard.tensors().items():
            if name in tensors:
                raise InvalidFileError(f"{shard.path}: tensor {name!r} is in another part too; get the files again")
            tensors[name] = tensor
    total = shards[0].metadata.get("split.tensors.count", len(tensors)) if len(shards) > 1 else len(tensors)
    if total != len(tensors):
        raise InvalidFileError(
            f"{shards[0].path}: {total} tensors are announced, the parts hold {len(tensors)}; get the files again"
        )
    return tensors


__all__ = ["GgufFormat"]
