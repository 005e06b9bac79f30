"""Rows that workers elsewhere read for themselves: where they lie travels, the encoded bytes come back.

A worker opens the source as the caller did and lays it out for the same format, once for each source, so that a tensor
that the format stacks, splits or permutes has the caller's rows. What must agree is checked there: the versions of
edgekit and of the plugins that read, lay out and encode, and the sizes and times of the files.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError
from pathlib import Path

import attrs

from edgekit.artifact import Artifact, Layout
from edgekit.encoding._codecs import Codec
from edgekit.errors import ChangedSourceError, EdgekitError, MissingFileError, PluginError, ResourceError
from edgekit.pipeline._stream import Rows, raw_rows
from edgekit.plugin._registry import manager
from edgekit.tensor import AnyTensor

LaidOut = Callable[[str, str], Layout]
#: Packages whose errors mean that workers or the cluster were lost.
_ENGINES = {"dask", "distributed", "mpi4py", "ray", "tornado"}


@attrs.frozen
class Source:
    """A source as a worker finds it.

    Attributes:
        path: absolute, and the same on every worker.
        format: name of the target's format, in whose layout the tensors are named.
        files: path, bytes and time of modification in nanoseconds of each file.
        versions: the distributions that must agree, with the caller's version of each.
        laid_out: opens a path and returns its layout for a format; pickled by its name.
    """

    path: str
    format: str
    files: tuple[tuple[str, int, int], ...]
    versions: tuple[tuple[str, str], ...]
    laid_out: LaidOut

    @classmethod
    def of(cls, artifact: Artifact, format_name: str, backends: Iterable[str], laid_out: LaidOut) -> Source:
        """Return how workers find an opened artifact."""
        files = []
        for file in artifact.files:
            status = file.stat()
            files.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
        names = {r.plugin for r in manager().all("formats") if r.name in (format_name, artifact.format)}
        used = {"core", *names, *backends}
        versions = ((p.distribution, p.version) for p in manager().plugins if p.name in used)
        return cls(str(artifact.path.absolute()), format_name, tuple(files), tuple(sorted(versions)), laid_out)


@attrs.frozen
class RemoteRows:
    """Rows `start` to `stop` of a tensor of a source's layout."""

    source: Source
    name: str
    start: int
    stop: int

    def read(self, codec: Codec) -> Rows:
        """Return the rows, read here.

        Raises:
            PluginError: edgekit or a plugin has another version here, or is missing.
            MissingFileError: the source is not to be seen from here.
            ChangedSourceError: its files differ from those that the caller opened.
        """
        return raw_rows(tensors(self.source)[self.name], codec, self.start, self.stop)


@functools.lru_cache(maxsize=2)
def tensors(source: Source) -> Mapping[str, AnyTensor]:
    """Return the tensors of a source's layout by their names there; raises as `RemoteRows.read`."""
    here = {p.distribution: p.version for p in manager().plugins if p.status == "loaded"}
    differing = [
        f"{name} {here.get(name, 'not installed')} instead of {version}"
        for name, version in source.versions
        if here.get(name) != version
    ]
    if differing:
        raise PluginError(
            f"the worker on {socket.gethostname()} has {', '.join(differing)}; install the caller's versions"
        )
    for file, size, modified in source.files:
        try:
            status = Path(file).stat()
        except OSError as error:
            raise MissingFileError(
                f"the worker on {socket.gethostname()} cannot read {file} ({error.strerror}); share its directory with "
                "the workers under the same path, or give an opened artifact, whose rows are then sent to them"
            ) from error
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            raise ChangedSourceError(f"{file}: the worker on {socket.gethostname()} sees another file than the caller")
    return {slot.name: slot.tensor for slot in source.laid_out(source.path, source.format).slots}


def lost(error: Exception) -> EdgekitError | None:
    """Return the error to raise where an executor lost its workers; None if it is the work's own error."""
    package = type(error).__module__.partition(".")[0]
    if not isinstance(error, BrokenExecutor | CancelledError) and package not in _ENGINES:
        return None
    return ResourceError(
        f"the executor lost its workers ({type(error).__name__}: {error!s:.200}); run the same command again: what is "
        "complete is kept"
    )


__all__ = ["LaidOut", "RemoteRows", "Source", "lost", "tensors"]
