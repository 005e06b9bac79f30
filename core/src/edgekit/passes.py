"""Passes: whole-artifact transformations, such as pruning or graph optimization, which plugins bring.

A pass reads one artifact and writes another, and says what that cost: the result's manifest records, under
``quality``, what the pass measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.pipeline import open_artifact
from edgekit.plugin import manager


class Pass(Protocol):
    """Transforms an artifact as a whole; registered with ``edgekit_register_passes``."""

    name: str

    def run(self, source: Artifact, to: Path, **options: Any) -> Artifact:
        """Write the changed artifact, atomically, and give it opened; the source stays as it is.

        Args:
            source: what to change; of a format that the pass understands.
            to: where the result goes.
            options: what the pass understands besides.

        Returns:
            The result. Its ``manifest.quality`` holds what was measured: names to finite numbers.

        Raises:
            UnsupportedModelError: the pass does not understand the source; raised before anything is written.
        """
        ...


def run_pass(
    source: Artifact | str | os.PathLike[str],
    name: str,
    *,
    to: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
) -> Artifact:
    """Run an installed pass.

    Raises:
        MissingPluginError: no installed plugin brings a pass of that name.
        UsageError: the target is the source.
    """
    artifact = source if isinstance(source, Artifact) else open_artifact(source)
    target = Path(to)
    if target.exists() and target.resolve() == artifact.path.resolve():
        raise UsageError(f"{target}: the target is the source; choose another path")
    chosen: Pass = manager().load("passes", name)
    return chosen.run(artifact, target, **(options or {}))
