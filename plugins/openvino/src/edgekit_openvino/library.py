"""Access to the openvino packages, which are imported on first use without telemetry, and to the devices."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from edgekit.errors import MissingPluginError
from edgekit.files.memory import refuse_shortage

#: Environment variables: openvino_telemetry reads the first when a session starts, nncf the second on import.
_SILENT = {"CI": "true", "NNCF_CI": "1"}
_ENVIRONMENT = threading.RLock()


@functools.cache
def openvino() -> ModuleType:
    """Return the openvino package.

    Raises:
        MissingPluginError: openvino is not installed.
    """
    return _import("openvino", "pip install edgekit-openvino")


def genai() -> ModuleType:
    """Return the package openvino_genai, which generates text.

    Raises:
        MissingPluginError: openvino_genai is not installed.
    """
    return _import("openvino_genai", "pip install 'edgekit-openvino[genai]'")


def tokenizers() -> ModuleType:
    """Return the package openvino_tokenizers, which converts tokenizers to models.

    Raises:
        MissingPluginError: openvino_tokenizers is not installed.
    """
    return _import("openvino_tokenizers", "pip install 'edgekit-openvino[genai]'")


def nncf() -> Any:
    """Return the package nncf, which compresses models.

    Raises:
        MissingPluginError: nncf is not installed.
    """
    return _import("nncf", "pip install edgekit-openvino")


def _import(name: str, cure: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    try:
        with silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        refuse_shortage(error, f"importing {name}")
        if importlib.util.find_spec(name) is not None:
            raise MissingPluginError(
                f"the package {name} is installed, but cannot be imported ({error!s:.300}); install it again: {cure}"
            ) from error
        raise MissingPluginError(f"this needs the package {name}, which is not installed; {cure}") from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Disable the telemetry of openvino and nncf in the block, including the events that both send on import.

    Source: ``openvino/tools/ovc/__init__.py``, ``nncf/telemetry/wrapper.py``, ``openvino_telemetry`` 2025.2.0.
    """
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in _SILENT}
        os.environ.update(_SILENT)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def last_line(error: Exception) -> str:
    """Return the last line of an error's message; OpenVINO puts its source locations in the lines before."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


@functools.cache
def core() -> Any:
    """Return the process's `openvino.Core`, which holds the device plugins and their caches."""
    return openvino().Core()


def devices() -> list[str]:
    """Return one line per device that openvino reports."""
    runtime = core()
    return [_described(runtime, device) for device in runtime.available_devices]


def _described(runtime: Any, device: str) -> str:
    name = runtime.get_property(device, "FULL_DEVICE_NAME")
    capabilities = ", ".join(runtime.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    return f"{device}: {name} ({capabilities})"


__all__ = ["core", "devices", "genai", "last_line", "nncf", "openvino", "silent", "tokenizers"]
