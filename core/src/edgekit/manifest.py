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
from edgekit.files.foreign import read_bytes, shown, strict_json

SCHEMA = 1
#: Bytes; a line or two for each of a model's tensors take less than a tenth of it.
LIMIT = 64 << 20


def _mapping(manifest: Manifest, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{field.name} is no mapping")


def _sentences(manifest: Manifest, field: attrs.Attribute[Any], value: object) -> None:
    _mapping(manifest, field, value)
    if not all(isinstance(sentence, str) for sentence in dict(value).values()):  # type: ignore[call-overload]
        raise TypeError(f"{field.name} holds what is no text")


@attrs.frozen
class Manifest:
    """What edgekit recorded about an artifact that it wrote.

    Attributes:
        sources: SHA-256 (hex) of every file that was read, by file name; while an artifact is being written a
            `edgekit.files.digests.Digests`, of which values may still be on their way.
        recipe: name of the recipe.
        tensors: for each tensor its precision, the backend that encoded it, and the reason.
        versions: version of edgekit, of numpy, and of each plugin that took part, by distribution.
        quality: what `edgekit.compare` measured, where it was asked to record it.
        notes: what is of note, a sentence by kind: `edgekit.pipeline.notes`.
    """

    sources: Mapping[str, str] = attrs.field(factory=dict, validator=_mapping)
    recipe: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    tensors: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict, validator=_mapping)
    versions: Mapping[str, str] = attrs.field(factory=dict, validator=_mapping)
    quality: Mapping[str, Any] = attrs.field(factory=dict, validator=_mapping)
    notes: Mapping[str, str] = attrs.field(factory=dict, validator=_sentences)

    def to_json(self) -> str:
        """Deterministic JSON; waits for the sources' hashes where they are still being computed."""
        fields = {**attrs.asdict(self), "sources": dict(self.sources)}
        return json.dumps({"schema": SCHEMA, **fields}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: bytes, file: Path) -> Manifest:
        """Parse; `file` is for the error's message.

        Raises:
            InvalidFileError: not strict JSON, or no manifest.
        """
        data = strict_json(text, file, "the file")
        try:
            schema = data.pop("schema")
            if schema != SCHEMA:
                raise ValueError(f"schema {shown(schema)}, this edgekit reads {SCHEMA}")
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidFileError(
                f"{file}: not an edgekit manifest ({error!s:.200}); delete it to go on without"
            ) from error


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of an artifact lies."""
    if artifact.suffix and not artifact.is_dir():
        return artifact.with_name(artifact.name + ".edgekit.json")
    return artifact / "edgekit.manifest.json"


def read_manifest(artifact: Path) -> Manifest | None:
    """The artifact's manifest, or None."""
    path = manifest_path(artifact)
    content = read_bytes(path.parent, path.name, LIMIT)
    return None if content is None else Manifest.from_json(content, path)
