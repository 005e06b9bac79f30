"""Measurements by workers elsewhere, which open the model themselves: its path and ranges of the text travel.

What a worker computes is what the calling process computes without an executor, piece by piece, and the pieces are
added up there in the order of the text. So the bits do not depend on how many workers there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import attrs

from edgekit.architectures import Model
from edgekit.artifact import Artifact, Layout
from edgekit.errors import UsageError
from edgekit.evaluation._common import Source as Given
from edgekit.pipeline import _remote
from edgekit.pipeline._conversion import laid_out, open_artifact

_T = TypeVar("_T")
#: Calls under way at a time where neither what travels nor what comes back is large.
MANY = 256


@attrs.frozen
class Workers:
    """Workers elsewhere, and how they find a model.

    Attributes:
        pool: the executor.
        source: the model, and the files that are read beside it.
    """

    pool: Executor
    source: _remote.Source

    @classmethod
    def of(
        cls,
        executor: Executor | None,
        given: Given,
        artifact: Artifact,
        *,
        format: str = "",
        backends: Iterable[str] = (),
        others: Iterable[Path] = (),
    ) -> Workers | None:
        """Return the workers of an executor; None if there is none, or it has threads of this process.

        Args:
            executor: the executor.
            given: the model as the caller was given it.
            artifact: the same, opened.
            format: name of the format whose layout the workers need; empty for the model as it is.
            backends: the plugins that encode.
            others: further files that the workers read.

        Raises:
            UsageError: the model is given as an opened artifact.
        """
        pool = _remote.elsewhere(executor)
        if pool is None:
            return None
        if isinstance(given, Artifact):
            raise UsageError(
                f"{artifact.path}: with an executor the workers open the model themselves; give its path instead of an "
                "opened artifact"
            )
        opening = laid_out if format else _unchanged
        return cls(pool, _remote.Source.of(artifact, format or artifact.format, backends, opening, others))

    def in_order(self, calls: Iterable[Callable[[], _T]], ahead: int = MANY) -> Generator[_T, None, None]:
        """Yield the results of calls in their order; see `edgekit.pipeline._remote.in_order`."""
        return _remote.in_order(self.pool, calls, ahead)

    def call(self, call: Callable[[], _T]) -> _T:
        """Return the result of a call."""
        (result,) = self.in_order([call])
        return result


def _unchanged(path: str, format_name: str) -> Layout:
    """Open a model and return it without slots: a worker does, which needs none."""
    artifact = open_artifact(path)
    return Layout((), artifact, artifact.model)


@functools.lru_cache(maxsize=2)
def model(source: _remote.Source) -> Model:
    """Return a source's model, opened here.

    Raises:
        PluginError, MissingFileError, ChangedSourceError: as `edgekit.pipeline._remote.Source.refuse_others`.
    """
    opened = source.layout().model
    assert opened is not None
    return opened


__all__ = ["MANY", "Workers", "model"]
