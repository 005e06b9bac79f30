"""The manifest beside an artifact: what it was made from, how, and its measured quality.

It contains no time, no host name and no path, so that the same input gives the same bytes. In a directory
it is ``edgekit.manifest.json``; beside a single file it is ``<file>.edgekit.json``, so that several
artifacts can share a directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.files import pairs
from edgekit.files.foreign import read_bytes, readable, shown, strict_json
from edgekit.files.pairs import LIMIT

SCHEMA = 1
#: What `edgekit.files` adds when the artifact is committed: to which file the manifest belongs, the record of the file
#: that is being replaced, and the names of a directory's files.
_ADDED = ("file", "previous", "files")


def _mapping(manifest: Manifest, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{field.name} is not a mapping")


def _sentences(manifest: Manifest, field: attrs.Attribute[Any], value: object) -> None:
    _mapping(manifest, field, value)
    if not all(isinstance(sentence, str) for sentence in cast(Mapping[str, object], value).values()):
        raise TypeError(f"{field.name} holds values that are not text")


@attrs.frozen
class Manifest:
    """What edgekit recorded about an artifact that it wrote.

    Attributes:
        sources: digest of every file that was read, by file name: SHA-256 (hex), or of a file above 64 MiB a tree of
            SHA-256, which begins with the scheme's name. `edgekit.files.digests.has_digest` checks a file against
            either. While an artifact is being written it is a `edgekit.files.digests.Digests`, whose values may still
            be being computed.
        recipe: name of the recipe.
        tensors: for each tensor its precision, the backend that encoded it, and the reason.
        versions: version of edgekit, of numpy, and of each plugin that took part, by distribution.
        quality: what `edgekit.compare` measured, if it was asked to record it.
        notes: remarks for the user, one sentence by kind; `edgekit.pipeline` lists the kinds.
        calibration: what it was calibrated on, so that `edgekit.evaluate` can tell if it measures on the same text:
            ``tokens``, ``context``, ``run`` and ``runs``, hashes of runs of so many tokens. Absent in the file without.
    """

    sources: Mapping[str, str] = attrs.field(factory=dict, validator=_mapping)
    recipe: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    tensors: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict, validator=_mapping)
    versions: Mapping[str, str] = attrs.field(factory=dict, validator=_mapping)
    quality: Mapping[str, Any] = attrs.field(factory=dict, validator=_mapping)
    notes: Mapping[str, str] = attrs.field(factory=dict, validator=_sentences)
    calibration: Mapping[str, Any] = attrs.field(factory=dict, validator=_mapping)

    def to_json(self) -> str:
        """Return deterministic JSON; waits until the sources' hashes are computed."""
        fields = {**attrs.asdict(self), "sources": dict(self.sources)}
        if not self.calibration:
            del fields["calibration"]
        # A file's name may not be Unicode text; other readers reject JSON that contains one.
        return json.dumps(_readable({"schema": SCHEMA, **fields}), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: bytes, file: Path) -> Manifest:
        """Parse a manifest; `file` is for the error's message.

        Raises:
            InvalidFileError: the text is not strict JSON, or not a manifest.
        """
        return cls.from_record(strict_json(text, file, "the file"), file)

    @classmethod
    def from_record(cls, record: Any, file: Path) -> Manifest:
        """Return the manifest that parsed JSON describes; raises as `from_json`."""
        try:
            data = {key: value for key, value in record.items() if key not in _ADDED}
            schema = data.pop("schema")
            if schema != SCHEMA:
                raise ValueError(f"schema {shown(schema)}, this edgekit reads {SCHEMA}")
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidFileError(
                f"{file}: not an edgekit manifest ({error!s:.200}); delete it to go on without"
            ) from error


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, Mapping):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list | tuple) else value


def manifest_path(artifact: Path) -> Path:
    """Return the path of an artifact's manifest."""
    if artifact.is_file() or (artifact.suffix and not artifact.is_dir()):
        return pairs.beside(artifact)
    return artifact / pairs.INSIDE


def read_manifest(artifact: Path) -> Manifest | None:
    """Return the artifact's manifest; None if there is none, or if the one beside a file belongs to another file.

    Raises:
        InvalidFileError: the file is not a manifest, or larger than 64 MiB.
    """
    return _read(artifact)[0]


def stale_manifest(artifact: Path) -> str | None:
    """Return why the manifest beside a file is ignored; None if there is none, or if it is valid."""
    return _read(artifact)[1]


def _read(artifact: Path) -> tuple[Manifest | None, str | None]:
    path = manifest_path(artifact)
    if not path.is_file():
        path = manifest_path(Path(os.path.realpath(artifact)))  # it lies beside the file, not beside a link to it
    content = read_bytes(path.parent, path.name, LIMIT)
    if content is None:
        return None, None
    record = strict_json(content, path, "the file")
    if path.name == pairs.INSIDE:
        return Manifest.from_record(record, path), None
    Manifest.from_record(record, path)
    try:
        matching = pairs.belonging(record, pairs.seal_of(artifact))
    except OSError as error:
        raise MissingFileError(f"{artifact}: cannot be read ({error.strerror}); check its permissions") from error
    if matching is None:
        which = "describes another file than" if "file" in record else "does not say that it belongs to"
        return None, f"{path.name} is ignored: it {which} {artifact.name} as it is now"
    return Manifest.from_record(matching, path), None


__all__ = ["SCHEMA", "Manifest", "manifest_path", "read_manifest", "stale_manifest"]
