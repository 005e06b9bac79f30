"""Packages: an artifact in the directory layout of a model server, with the command that starts the server.

Plugins provide the servers' layouts (``edgekit_register_packagers``). edgekit does not start the server; the package
states the command.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from edgekit.artifact import Artifact
from edgekit.files import pairs
from edgekit.files.atomic import AtomicDirectory, writing
from edgekit.files.guard import stamps, working
from edgekit.manifest import Manifest
from edgekit.pipeline._conversion import as_artifact
from edgekit.pipeline.passes import files_in, refuse_options
from edgekit.plugin._registry import manager

#: Name of the file that marks a package as edgekit's, so that a later run may replace it.
PACKAGE_MANIFEST = pairs.INSIDE


@attrs.frozen
class Package:
    """A package that was written.

    Attributes:
        path: the directory.
        files: paths relative to `path`.
        command: starts the server; run it in the directory.
        notes: remarks for the user: what was checked, and what was not.
    """

    path: Path
    files: tuple[str, ...]
    command: str
    notes: tuple[str, ...] = ()


class Packager(Protocol):
    """Lays out artifacts for one model server; registered with ``edgekit_register_packagers``."""

    name: str

    def package(self, source: Artifact, to: Path, **options: Any) -> Package:
        """Write the directory, whole or not at all; the source is not modified.

        Write `package_manifest` into it, too: a later run replaces only a directory that has one.

        Args:
            source: the artifact to serve, in a format that the server reads.
            to: the directory.
            options: the packager's further options, as keyword arguments.

        Raises:
            UnsupportedModelError: the server cannot serve the source; raised before anything is written.
        """
        ...


def package_manifest(server: str) -> str:
    """Content of `PACKAGE_MANIFEST` in a package for `server`; `AtomicDirectory.commit` adds the files' names."""
    return Manifest(recipe=f"package:{server}").to_json()


def write_files(to: Path, server: str, contents: Mapping[str, str], copies: Mapping[str, Path]) -> tuple[str, ...]:
    """Write the files of a package and its manifest, all of them or none; for packagers.

    Args:
        to: the directory.
        server: the packager's name.
        contents: texts by their paths in the package.
        copies: the files that are copied, by their paths in the package.

    Returns:
        The paths of all files, sorted.

    Raises:
        UsageError, ResourceError, LockedError: about the target.
    """
    texts = {**contents, PACKAGE_MANIFEST: package_manifest(server)}
    names = (*texts, *copies)
    directory = AtomicDirectory(to)
    try:
        directory.reserve(sum(file.stat().st_size for file in copies.values()))
        with writing(to):
            for folder in {(directory.path / name).parent for name in names}:
                folder.mkdir(parents=True, exist_ok=True)
            for name, file in copies.items():
                shutil.copyfile(file, directory.path / name)
        for name, text in texts.items():
            directory.write(name, text.encode())
        directory.commit()
    finally:
        directory.close(keep=False)
    return tuple(sorted(names))


def package(
    source: Artifact | str | os.PathLike[str],
    server: str,
    *,
    to: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    notes: list[str] | None = None,
) -> Package:
    """Lay out an artifact for a model server.

    Args:
        source: an artifact, or the path of one.
        server: name of an installed packager (``ovms``).
        to: the directory to write.
        options: of the packager; a file that one names is a source too.
        overwrite: replace a model directory that edgekit did not write. A package that it wrote is replaced in any
            case; a directory with other files never is.
        notes: remarks about the run for the user are appended to it, one sentence each.

    Raises:
        MissingPluginError: no installed plugin provides that packager.
        UsageError: the target is, holds or lies inside a source, or is something that edgekit did not write; or the
            packager has no such option.
        ChangedSourceError: the source was changed while it was read.
    """
    chosen: Packager = manager().find("packagers", server).load()
    artifact = as_artifact(source)
    given = dict(options or {})
    with working(Path(to), {**artifact.reads, **stamps(files_in(given))}, overwrite, notes):
        refuse_options(chosen.package, f"the packager {server!r}", given)
        return chosen.package(artifact, Path(to), **given)


__all__ = ["PACKAGE_MANIFEST", "Package", "Packager", "package", "package_manifest", "write_files"]
