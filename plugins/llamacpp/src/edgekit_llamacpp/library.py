"""The installed llama.cpp: its build features and its log."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from edgekit.errors import MissingPluginError, UsageError
from edgekit.files.memory import refuse_shortage

#: Command that builds llama-cpp-python for an accelerator, from its README.
BUILD = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir llama-cpp-python'
_ERRORS = (3, 4)  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
#: Environment variable that shows llama.cpp's log; else it goes to Python's logging under `LOG`.
SHOW_LOG = "EDGEKIT_LLAMACPP_LOG"
LOG = logging.getLogger("edgekit_llamacpp.native")
LOG.addHandler(logging.NullHandler())  # without a handler Python would print its warnings
#: ggml's log levels as Python's: llama.cpp's information is debug output for users.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_KEPT: list[Any] = []  # callbacks that C may call at any time
_FORKED = (
    "llama.cpp was used before this process was forked, and would wait forever for threads that only the parent has; "
    "start the process with multiprocessing's method 'spawn', load the model in the child, or load it with isolate=True"
)


class _Process:
    """The library's state in one process: a lock, and whether the process was forked after another had used it."""

    copied = False
    lock = threading.RLock()


_process = _Process()


def llama() -> Any:
    """Return ``llama_cpp.llama_cpp``, the C functions, with the backends initialized.

    Raises:
        MissingPluginError: llama-cpp-python is not installed, or cannot be loaded.
        UsageError: this process was forked from one that had used it.
    """
    refuse_copy()
    return _loaded()


def copied() -> bool:
    """Return whether llama.cpp cannot be used in this process, because it was used before the process was forked."""
    return _process.copied


def refuse_copy() -> None:
    """Raise `UsageError` if llama.cpp was used before this process was forked; its threads exist in the parent only."""
    if _process.copied:
        raise UsageError(_FORKED)


def _after_fork() -> None:
    _process.copied = _process.copied or _loaded.cache_info().currsize > 0
    _process.lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _loaded() -> Any:
    try:
        module: Any = importlib.import_module("llama_cpp.llama_cpp")
        hush(module)
        module.llama_backend_init()
    except (ImportError, OSError, RuntimeError, AttributeError, MemoryError) as error:
        refuse_shortage(error, "importing llama-cpp-python")
        raise MissingPluginError(
            f"llama-cpp-python cannot be loaded ({error}); pip install --force-reinstall llama-cpp-python"
        ) from error
    return module


def hush(library: Any) -> None:
    """Replace llama-cpp-python's log callback, which prints everything; any other callback is kept.

    llama.cpp sets ggml's logger along with its own; both stay set while text is generated.
    """
    module: Any = importlib.import_module("llama_cpp._logger")
    current, data = library.llama_log_callback(), ctypes.c_void_p()
    library.llama_log_get(ctypes.byref(current), ctypes.byref(data))
    address = ctypes.cast(current, ctypes.c_void_p).value
    if address not in (None, ctypes.cast(module.llama_log_callback, ctypes.c_void_p).value):
        return
    callback = library.llama_log_callback(_listen)
    _KEPT.append(callback)
    library.llama_log_set(callback, ctypes.c_void_p(0))


def _listen(level: int, text: bytes, _: object) -> None:
    line = text.decode("utf-8", "replace")
    if os.environ.get(SHOW_LOG, "0") not in ("", "0"):
        print(line, end="", file=sys.stderr, flush=True)
    elif line.strip():
        LOG.log(_LEVELS.get(level, logging.DEBUG), "%s", line.strip())


@contextlib.contextmanager
def quiet() -> Iterator[deque[str]]:
    """Collect llama.cpp's warnings and errors instead of printing its log; the previous listener is restored."""
    library, lines = llama(), deque[str](maxlen=20)
    with _process.lock:  # the logger is one for the process
        before, data = library.llama_log_callback(), ctypes.c_void_p()
        library.llama_log_get(ctypes.byref(before), ctypes.byref(data))

        def keep(level: int, text: bytes, _: object) -> None:
            if level in _ERRORS:
                lines.append(text.decode("utf-8", "replace").strip())

        callback = library.llama_log_callback(keep)
        library.llama_log_set(callback, ctypes.c_void_p(0))
        try:
            yield lines
        finally:
            library.llama_log_set(before, data)


def features() -> dict[str, str]:
    """Return the CPU features of the build, as ``llama_print_system_info`` says: ``AVX2`` to ``1``."""
    text: str = llama().llama_print_system_info().decode()
    pairs = [pair.partition("=") for part in text.split("|") for pair in [part.rpartition(":")[2]] if "=" in pair]
    return {name.strip(): value.strip() for name, _, value in pairs}


__all__ = ["BUILD", "SHOW_LOG", "copied", "features", "hush", "llama", "quiet", "refuse_copy"]
