"""Packages: an artifact laid out as a model server expects it, with what it takes to start the server.

Plugins bring the servers' layouts (``edgekit_register_packagers``). edgekit starts nothing: a package says with which
command it is started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.pipeline.conversion import open_artifact
from edgekit.pipeline.passes import refuse_options
from edgekit.plugin.registry import manager


@attrs.frozen
class Package:
    """What was laid out.

    Attributes:
        path: the directory.
        files: in it, relative to it.
        command: starts the server on it, from within the directory.
        notes: what the user should know: what was checked, and what was not.
    """

    path: Path
    files: tuple[str, ...]
    command: str
    notes: tuple[str, ...] = ()


class Packager(Protocol):
    """Lays out artifacts for one model server; registered with ``edgekit_register_packagers``."""

    name: str

    def package(self, source: Artifact, to: Path, **options: Any) -> Package:
        """Write the directory, whole or not at all; the source stays as it is.

        Args:
            source: what to serve; of a format that the server reads.
            to: the directory.
            options: what the packager understands besides, as keyword arguments of their own.

        Raises:
            UnsupportedModelError: the server cannot serve the source; raised before anything is written.
        """
        ...


def package(
    source: Artifact | str | os.PathLike[str],
    server: str,
    *,
    to: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
) -> Package:
    """Lay out an artifact for a model server.

    Args:
        source: an artifact, or the path of one.
        server: name of an installed packager (``ovms``).
        to: the directory to write.
        options: what the packager understands.

    Raises:
        MissingPluginError: no installed plugin brings that packager.
        UsageError: the target is the source, or the packager has no such option.
    """
    chosen: Packager = manager().find("packagers", server).load()
    artifact = source if isinstance(source, Artifact) else open_artifact(source)
    target, given = Path(to), dict(options or {})
    if target.exists() and target.resolve() == artifact.path.resolve():
        raise UsageError(f"{target}: the target is the source; choose another path")
    refuse_options(chosen.package, f"the packager {server!r}", given)
    return chosen.package(artifact, target, **given)


__all__ = ["Package", "Packager", "package"]
