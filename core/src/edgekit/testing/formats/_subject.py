"""The subject of the format checks, and its temporary folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from edgekit.artifact import Artifact, Format
from edgekit.manifest import Manifest, manifest_path
from edgekit.precision import Precision
from edgekit.testing._trips import write


@attrs.frozen(eq=False)
class FormatSubject:
    """A format with the suffix of its files.

    Attributes:
        format: implements `edgekit.artifact.Format`.
        suffix: suffix of the files that it writes; empty for a directory.
        name: its name in messages.
    """

    format: Format
    suffix: str
    name: str

    @property
    def label(self) -> str:
        """The format's name, for messages."""
        return f"format {self.name!r}"

    def write(
        self,
        folder: Path,
        artifact: Artifact,
        precisions: Mapping[str, Precision] | None = None,
        manifest: Manifest | None = None,
    ) -> Path:
        """Write an artifact into a folder, and return the path of the written file or directory."""
        path = folder / f"model{self.suffix}"
        write(self.format, path, artifact, precisions, manifest)
        return path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder, which is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as folder:
        yield Path(folder)


def contents_of(path: Path) -> dict[str, bytes]:
    """Return the contents of every file of an artifact, including the manifest, by name."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path, manifest_path(path)]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


__all__ = ["FormatSubject", "contents_of", "temporary_folder"]
