"""What a call does to its process: what it prints, which settings it changes, which files and sockets it opens."""

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
    """Captured output: warnings, and text on stdout from Python or C."""

    warnings: list[warnings.WarningMessage] = attrs.field(factory=list)
    text: str = ""


@contextmanager
def heard() -> Iterator[Heard]:
    """Listen to warnings and to file descriptor 1; the result is filled at the end."""
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
    """Python's stdout and the file descriptor beneath it, which native code writes to."""
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
    """Both Python's and C's buffers."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with suppress(OSError, AttributeError, TypeError):  # no C library to ask
        ctypes.CDLL(None).fflush(None)


#: Variables of the environment that native libraries are steered with, and that a library has no business to set.
_STEERING = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "KMP_DUPLICATE_LIB_OK",
)


@contextmanager
def _restored() -> Iterator[None]:
    """Everything that `States` looks at is afterwards as it was."""
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
    """Every floating point error raises, and the global random streams stand elsewhere."""
    with _restored(), np.errstate(all="raise"):
        np.random.seed(12345)
        random.seed(12345)
        yield


@contextmanager
def unusual_state() -> Iterator[None]:
    """Unusual values, so that a change to the usual ones is detected."""
    with _restored(), np.errstate(all="warn", under="ignore"), np.printoptions(precision=11):
        np.random.seed(54321)
        random.seed(54321)
        warnings.filterwarnings("default", message="a filter that nobody else has")
        os.environ.update(dict.fromkeys(_STEERING, "3"))
        yield


@attrs.frozen
class States:
    """The settings of a process that a computation has no business to change, by what they are called."""

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
        """Return the settings that changed."""
        return [name for name, value in self.values.items() if later.values[name] != value]


_watching = threading.local()


@contextmanager
def traces() -> Iterator[list[str]]:
    """Files written and network used by this thread, as sentences; what C does by itself is not seen."""
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
    """Once a process: an audit hook cannot be taken away again, so it does nothing unless a check is active."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_watch)
