"""Memory shortage as a typed error, with the number of bytes that were requested."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EdgekitError, MemoryShortageError

#: Messages of libraries and the system's loader when an allocation fails without a `MemoryError`.
_SAID = re.compile(
    r"bad_alloc|bad_array_new_length|cannot allocate|failed to map segment|out of memory|can't start new thread|"
    r"(not enough|insufficient) memory|(failed|unable) to allocate",
    re.IGNORECASE,
)
#: A number of bytes in such a text.
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?(bytes|B|KiB|kB|MiB|MB|GiB|GB)\b")
_SIZE = re.compile(r"\bof size (\d+)\b")
#: If fewer bytes are available, an error without a message is treated as a shortage.
_LITTLE = 64 << 20
#: Longest chain of exceptions that is examined.
_LINKS = 10
_UNITS = {"bytes": 1, "B": 1, "KiB": 1 << 10, "kB": 1000, "MiB": 1 << 20, "MB": 10**6, "GiB": 1 << 30, "GB": 10**9}
_CURE = "close other programs, raise the limit (ulimit -v), or take a smaller model"


def is_shortage(error: BaseException) -> bool:
    """Whether an exception of any library means that memory ran out, or was raised while one that does was handled."""
    return any(map(_says_so, _chain(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and those that a traceback shows before it."""
    at: BaseException | None = error
    for _ in range(_LINKS):
        if at is None:
            return
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, SystemError):  # compiled code that forgets to report a failed allocation ends in one
        free = available()
        return free is not None and free < _LITTLE
    return _SAID.search(str(error)) is not None


def shortage(what: str, requested: int | None = None, *, least: bool = False) -> MemoryShortageError:
    """Return the error for insufficient memory.

    Args:
        what: what needs it: a file and an action, or a tensor.
        requested: bytes; None if unknown.
        least: whether `requested` is only a lower bound.
    """
    free = available()
    figure = "more memory than there is" if requested is None else f"{'at least ' * least}{requested:,} bytes"
    remaining = "" if free is None else f", {free:,} are available"
    return MemoryShortageError(f"{what} needs {figure}{remaining}; {_CURE}")


def requested_by(error: BaseException) -> int | None:
    """Return the bytes that a failed allocation requested, from numpy's error or a library's message; else None."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return math.prod(shape) * int(dtype.itemsize)
    if match := _SIZE.search(str(error)):
        return int(match[1])
    match = _BYTES.search(str(error))
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


@contextlib.contextmanager
def enough_memory(what: str, least: int | None = None) -> Iterator[None]:
    """Turn a shortage inside into a `MemoryShortageError`.

    Args:
        what: as for `shortage`.
        least: lower bound of the bytes needed, used if the failure does not state a number.
    """
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:
        refuse_shortage(error, what, least)
        raise


def refuse_shortage(error: BaseException, what: str, least: int | None = None) -> None:
    """Raise `MemoryShortageError` from a library's exception if it means that memory ran out.

    Args:
        error: what the library raised.
        what: as for `enough_memory`.
        least: as for `enough_memory`.
    """
    if is_shortage(error):
        requested = requested_by(error)
        raise shortage(
            what, least if requested is None else requested, least=requested is None and bool(least)
        ) from error


def available() -> int | None:
    """Return the bytes that this process can allocate without swapping and within its limits; None if unknown."""
    figures = [figure for figure in (_free(), _within_limit()) if figure is not None]
    return min(figures) if figures else None


def _free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except (OSError, MemoryError):
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _within_limit() -> int | None:
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
    except (ImportError, OSError, MemoryError, AttributeError):
        return None


__all__ = ["available", "enough_memory", "is_shortage", "refuse_shortage", "requested_by", "shortage"]
