"""Work for workers elsewhere, which open the source themselves: paths travel, not weights.

`Source.tensor` is a tensor that a worker reads, to write what it encodes to its place; `RemoteRows` are rows whose
encoded bytes come back.

A worker opens the source as the caller did and lays it out for the same format, once for each source, so that a tensor
that the format stacks, splits or permutes has the caller's rows. What must agree is checked there: the versions of
edgekit and of the plugins that read, lay out and encode, and the sizes and times of the files.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import attrs

from edgekit.artifact import Artifact, Layout
from edgekit.encoding._codecs import Codec
from edgekit.errors import ChangedSourceError, EdgekitError, MissingFileError, PluginError, ResourceError
from edgekit.files.workers import Workers
from edgekit.pipeline._stream import LostWorkersError, Rows, raw_rows
from edgekit.plugin._registry import manager
from edgekit.tensor import AnyTensor

_T = TypeVar("_T")
LaidOut = Callable[[str, str], Layout]
#: Packages whose errors mean that workers or the cluster were lost.
_ENGINES = {"dask", "distributed", "mpi4py", "ray", "tornado"}
#: How many workers an executor is taken to have that does not say.
_WORKERS = 16
#: Several threads of a worker need a source at the same time, and one opens it.
_OPENING = threading.Lock()


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
    def of(
        cls,
        artifact: Artifact,
        format_name: str,
        backends: Iterable[str],
        laid_out: LaidOut,
        others: Iterable[Path] = (),
    ) -> Source:
        """Return how workers find an opened artifact; `others` are further files that they read."""
        files = []
        for file in (*artifact.files, *others):
            status = file.stat()
            files.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
        names = {r.plugin for r in manager().all("formats") if r.name in (format_name, artifact.format)}
        used = {"core", *names, *backends}
        versions = ((p.distribution, p.version) for p in manager().plugins if p.name in used)
        return cls(str(artifact.path.absolute()), format_name, tuple(files), tuple(sorted(versions)), laid_out)

    def rows(self, name: str, start: int, stop: int) -> RemoteRows:
        """Rows ``start:stop`` of a tensor, by its name in the layout."""
        return RemoteRows(self, name, start, stop)

    def tensor(self, name: str) -> AnyTensor:
        """Return a tensor of the layout, opened here once; raises as `refuse_others`."""
        with _OPENING:
            return tensors(self)[name]

    def layout(self) -> Layout:
        """Open the source here and return its layout, after `refuse_others`."""
        self.refuse_others()
        return self.laid_out(self.path, self.format)

    def refuse_others(self) -> None:
        """Raise if this worker has other versions than the caller, or sees other files.

        Raises:
            PluginError: edgekit or a plugin has another version here, or is missing.
            MissingFileError: a file is not to be seen from here.
            ChangedSourceError: a file differs from the one that the caller sees.
        """
        here = {p.distribution: p.version for p in manager().plugins if p.status == "loaded"}
        differing = [
            f"{name} {here.get(name, 'not installed')} instead of {version}"
            for name, version in self.versions
            if here.get(name) != version
        ]
        host = socket.gethostname()
        if differing:
            raise PluginError(f"the worker on {host} has {', '.join(differing)}; install the caller's versions")
        for file, size, modified in self.files:
            try:
                status = Path(file).stat()
            except OSError as error:
                raise MissingFileError(
                    f"the worker on {host} cannot read {file} ({error.strerror}); share its directory with the workers "
                    "under the same path (edgekit.quantize sends the rows of an opened artifact instead)"
                ) from error
            if (status.st_size, status.st_mtime_ns) != (size, modified):
                raise ChangedSourceError(f"{file}: the worker on {host} sees another file than the caller")


@attrs.frozen
class RemoteRows:
    """Rows `start` to `stop` of a tensor of a source's layout."""

    source: Source
    name: str
    start: int
    stop: int

    def read(self, codec: Codec) -> Rows:
        """Return the rows, read here; raises as `Source.refuse_others`."""
        return raw_rows(self.source.tensor(self.name), codec, self.start, self.stop)


@functools.lru_cache(maxsize=2)
def tensors(source: Source) -> Mapping[str, AnyTensor]:
    """Return the tensors of a source's layout by their names there; raises as `Source.refuse_others`."""
    return {slot.name: slot.tensor for slot in source.layout().slots}


def lost(error: Exception) -> EdgekitError | None:
    """Return the error to raise where an executor lost its workers; None if it is the work's own error."""
    package = type(error).__module__.partition(".")[0]
    if not isinstance(error, BrokenExecutor | CancelledError) and package not in _ENGINES:
        return None
    return LostWorkersError(
        f"the executor lost its workers ({type(error).__name__}: {error!s:.200}); run the same command again: what is "
        "complete is kept"
    )


def elsewhere(executor: Executor | None) -> Executor | None:
    """Return the executor if its workers are not threads of this process, else None."""
    return None if isinstance(executor, Workers | ThreadPoolExecutor) else executor


def workers(executor: Executor) -> int:
    """Return how many workers an executor has, as far as it says."""
    for name in ("workers", "num_workers", "_max_workers"):
        count = getattr(executor, name, None)
        if isinstance(count, int) and count > 0:
            return count
    return _WORKERS


def in_order(pool: Executor, calls: Iterable[Callable[[], _T]], ahead: int) -> Generator[_T, None, None]:
    """Yield the results of calls on a pool, in their order.

    Args:
        pool: what computes.
        calls: what to compute; taken one after the other, each when it is submitted.
        ahead: how many calls are submitted, or results held, at most.

    Raises:
        ResourceError: the pool lost its workers.
    """
    under_way: deque[Future[_T]] = deque()
    try:
        for call in calls:
            if len(under_way) >= ahead:
                yield waited(under_way[0].result)
                under_way.popleft()
            under_way.append(waited(functools.partial(pool.submit, call)))
        while under_way:
            yield waited(under_way[0].result)
            under_way.popleft()
    finally:
        for future in under_way:
            with contextlib.suppress(ResourceError):  # the first one's error is the one to raise
                waited(future.cancel)


def waited(call: Callable[[], _T]) -> _T:
    """Return what a call of a pool or a future returns; a pool's own error becomes `lost`'s."""
    try:
        return call()
    except Exception as error:
        if (instead := lost(error)) is None:
            raise
        raise instead from error


__all__ = ["LaidOut", "RemoteRows", "Source", "elsewhere", "in_order", "lost", "tensors", "waited", "workers"]
