"""Observes the side effects of a call on its process: output, changed settings, written files and opened sockets."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import numpy as np

_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request")
_FILES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir")


@attrs.define
class Heard:
    """The captured warnings, and the captured text on stdout from Python and from C."""

    warnings: list[warnings.WarningMessage] = attrs.field(factory=list)
    text: str = ""


@contextmanager
def heard() -> Iterator[Heard]:
    """Capture warnings and file descriptor 1; the yielded object is filled when the block ends."""
    output = Heard()
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryFile() as file:
        warnings.simplefilter("always")
        with _stdout_into(file):
            yield output
        file.seek(0)
        output.text = file.read().decode(errors="replace")
        output.warnings = list(caught)


@contextmanager
def _stdout_into(file: Any) -> Iterator[None]:
    """Redirect Python's stdout, and the file descriptor that native code writes to, into a file."""
    _flush()
    saved, python = os.dup(1), sys.stdout
    os.dup2(file.fileno(), 1)
    sys.stdout = open(os.dup(1), "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = python
        _flush()
        os.dup2(saved, 1)
        os.close(saved)


def _flush() -> None:
    """Flush the output buffers of Python and of the C library."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with suppress(OSError, AttributeError, TypeError):  # no C library to ask
        ctypes.CDLL(None).fflush(None)


#: Environment variables that configure native libraries; only the user may set them.
_STEERING = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "KMP_DUPLICATE_LIB_OK",
)


@contextmanager
def _restored() -> Iterator[None]:
    """Restore everything that `States` observes after the block."""
    numbers, words, environment = np.random.get_state(), random.getstate(), dict(os.environ)
    try:
        with warnings.catch_warnings(), np.errstate(), np.printoptions():
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(words)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def strict_state() -> Iterator[None]:
    """Make every floating-point error raise, and change the state of the global random streams, in the block."""
    with _restored(), np.errstate(all="raise"):
        np.random.seed(12345)
        random.seed(12345)
        yield


@contextmanager
def unusual_state() -> Iterator[None]:
    """Set unusual values in the block, so that setting a value to its default is detected."""
    with _restored(), np.errstate(all="warn", under="ignore"), np.printoptions(precision=11):
        np.random.seed(54321)
        random.seed(54321)
        warnings.filterwarnings("default", message="a filter that nobody else has")
        os.environ.update(dict.fromkeys(_STEERING, "3"))
        yield


@attrs.frozen
class States:
    """The settings of a process that a computation must not change, by name."""

    values: dict[str, Any]

    @classmethod
    def now(cls) -> States:
        """Return the current settings."""
        return cls(
            {
                "numpy's error state (np.seterr)": np.geterr(),
                "numpy's print options": repr(np.get_printoptions()),
                "numpy's global random stream": repr(np.random.get_state()),
                "Python's random stream": random.getstate(),
                "the warning filters": list(warnings.filters),
                "the environment": dict(os.environ),
                "the working directory": os.getcwd(),
                "a file in the working directory": sorted(os.listdir()),
                "the recursion limit": sys.getrecursionlimit(),
            }
        )

    def differences(self, later: States) -> list[str]:
        """Return the names of the settings that differ in a later snapshot."""
        return [name for name, value in self.values.items() if later.values[name] != value]


_watching = threading.local()


@contextmanager
def traces() -> Iterator[list[str]]:
    """Yield a list that is filled with sentences on files written and network used by this thread's Python code."""
    _hook()
    seen: list[str] = []
    _watching.seen = seen
    try:
        yield seen
    finally:
        _watching.seen = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    seen = getattr(_watching, "seen", None)
    if seen is None:
        return
    if event in _NETWORK:
        seen.append(f"uses the network ({event})")
    elif event in _FILES or (event == "open" and _writes(arguments)):
        seen.append(f"writes {arguments[0]!s}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] or 0
    device = isinstance(arguments[0], int) or str(arguments[0]).startswith("/dev/")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not device


_hooked: list[bool] = []


def _hook() -> None:
    """Install the audit hook once per process; it cannot be removed, so it does nothing unless a check is active."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_watch)
