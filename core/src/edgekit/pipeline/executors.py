"""Executors of other machines by their address: Dask, Ray, MPI.

Any `concurrent.futures.Executor` can be given to `edgekit.quantize`; this module makes one from an address, for the
command line. None of the engines is a dependency: each is imported when its address is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from edgekit.errors import MissingPluginError, ResourceError, UsageError

_P = ParamSpec("_P")
_T = TypeVar("_T")
KINDS = "dask://HOST:PORT, ray://HOST:PORT, ray: (a cluster on this machine), mpi: (within mpiexec) or processes:N"


class RayExecutor(Executor):
    """Runs calls as Ray tasks, which Ray repeats where a worker dies; Ray must be initialized.

    Example:
        >>> ray.init("ray://head:10001")  # doctest: +SKIP
        >>> edgekit.quantize("model.gguf", "Q4_K_M", to="small.gguf", executor=RayExecutor())  # doctest: +SKIP

    Raises:
        MissingPluginError: Ray is not installed.
    """

    def __init__(self) -> None:
        self._ray = _engine("ray")
        self._call = self._ray.remote(_run)

    @property
    def workers(self) -> int:
        """How many tasks the cluster runs at a time."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Submit a function call; its arguments and its result are pickled."""
        future: Future[_T] = self._call.remote(fn, args, kwargs).future()
        return future


class DaskExecutor(Executor):
    """Runs calls as tasks of a Dask cluster, which repeats them where a worker dies.

    ``Client.get_executor()`` does the same, but its futures never end if the cluster disappears (distributed 2026.8).

    Args:
        client: a ``distributed.Client``; it stays open.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def workers(self) -> int:
        """How many tasks the cluster runs at a time."""
        return sum(self._client.nthreads().values())

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Submit a function call; the result is Dask's future, which has the methods that edgekit calls."""
        future: Future[_T] = self._client.submit(fn, *args, **kwargs, pure=False, retries=3)
        return future


def _run(fn: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
    return fn(*args, **kwargs)


@contextmanager
def connected(address: str) -> Iterator[Executor]:
    """Connect to the executor of an address; the connection is closed at the end.

    Args:
        address: ``dask://HOST:PORT`` a Dask scheduler, ``ray://HOST:PORT`` a Ray cluster and ``ray:`` one that is
            started here, ``mpi:`` the other ranks of ``mpiexec -n N python -m mpi4py.futures -m edgekit …``, or
            ``processes:N`` worker processes here.

    Raises:
        UsageError: no such kind of address.
        MissingPluginError: the engine's package is not installed.
        ResourceError: the cluster does not answer.
    """
    kind, _, place = address.partition(":")
    if kind == "processes" and place.isdigit() and 0 < int(place) < 10_000:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(int(place), get_context("spawn")) as pool:
            yield pool
    elif kind == "dask" and place.startswith("//"):
        distributed = _engine("distributed")
        try:
            client = distributed.Client(f"tcp:{place}", timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise ResourceError(f"{address}: no Dask scheduler answers ({error!s:.200}); check the address") from error
        with client:
            yield DaskExecutor(client)
    elif kind == "ray" and (not place or place.startswith("//")):
        ray = _engine("ray")
        try:
            ray.init(address if place else None, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise ResourceError(f"{address}: no Ray cluster answers ({error!s:.200}); check the address") from error
        try:
            yield RayExecutor()
        finally:
            ray.shutdown()
    elif kind == "mpi" and not place:
        with _engine("mpi4py.futures", "mpi4py").MPIPoolExecutor() as pool:
            yield pool
    else:
        raise UsageError(f"executor {address!r:.80}; give {KINDS}")


def _engine(module: str, distribution: str = "") -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPluginError(f"this executor needs {module}; pip install {distribution or module}") from error


__all__ = ["KINDS", "DaskExecutor", "RayExecutor", "connected"]
