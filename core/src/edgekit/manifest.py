"""The manifest beside an artifact: what it was made from, how, and how good it is.

It holds no clock, no host name and no path, so that the same input gives the same bytes. In a directory
it is ``edgekit.manifest.json``; beside a single file it is ``<file>.edgekit.json``, so that several
artifacts can share a directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError

SCHEMA = 1


@attrs.frozen
class Manifest:
    """What edgekit recorded about an artifact that it wrote.

    Attributes:
        sources: SHA-256 (hex) of every file that was read, by file name.
        recipe: name of the recipe.
        tensors: for each tensor its precision, the backend that encoded it, and the reason.
        versions: version of edgekit, of numpy, and of each plugin that took part, by distribution.
        quality: what `edgekit.compare` measured, where it was asked to record it.
    """

    sources: Mapping[str, str] = attrs.field(factory=dict)
    recipe: str = ""
    tensors: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    versions: Mapping[str, str] = attrs.field(factory=dict)
    quality: Mapping[str, Any] = attrs.field(factory=dict)

    def to_json(self) -> str:
        """Deterministic JSON."""
        return json.dumps({"schema": SCHEMA, **attrs.asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, file: Path) -> Manifest:
        """Parse; `file` is for the error's message."""
        try:
            data = json.loads(text)
            schema = data.pop("schema")
            if schema != SCHEMA:
                raise ValueError(f"schema {schema}, this edgekit reads {SCHEMA}")
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidFileError(f"{file}: not an edgekit manifest ({error}); delete it to go on without") from error


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of an artifact lies."""
    if artifact.suffix and not artifact.is_dir():
        return artifact.with_name(artifact.name + ".edgekit.json")
    return artifact / "edgekit.manifest.json"


def read_manifest(artifact: Path) -> Manifest | None:
    """The artifact's manifest, or None."""
    path = manifest_path(artifact)
    return Manifest.from_json(path.read_text("utf-8"), path) if path.is_file() else None
