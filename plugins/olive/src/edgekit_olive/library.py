"""Access to the packages onnx, onnxruntime and onnxruntime_genai, which are imported on first use; and the devices.

onnxruntime 1.32 and onnxruntime-genai 0.18 write an identifier of the device and a database of events below the home
directory, and send them: the former when it is imported, the latter when it loads a model, both even after
`disable_telemetry_events`. With ``ORT_DISABLE_TELEMETRY=1`` in the environment they do neither.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from typing import Any

from edgekit.errors import MissingPluginError
from edgekit.files.memory import refuse_shortage

#: How onnxruntime names an operator that it does not have, and the place in its source before a message.
_OPERATOR = re.compile(r"(\S+)\(-?\d+\) is not a registered function/op")
_LOCATION = re.compile(r"^.*?\.cc:\d+ .*?\) (?=[A-Z])")
_CURE = "pip install edgekit-olive"
_GENAI = "edgekit-olive[genai]"
#: onnxruntime's log level: only fatal errors. Other errors are raised, and edgekit reports them.
FATAL_ONLY = 4


@functools.cache
def onnx() -> Any:
    """Return the package onnx.

    Raises:
        MissingPluginError: onnx is not installed.
    """
    return _import("onnx")


@functools.cache
def onnxruntime() -> Any:
    """Return the package onnxruntime; raises as `onnx`."""
    _silence()
    package = _import("onnxruntime")
    package.set_default_logger_severity(FATAL_ONLY)
    return package


@functools.cache
def genai() -> Any:
    """Return the package onnxruntime_genai; raises as `onnx`."""
    _silence()
    return _import("onnxruntime_genai", f"pip install '{_GENAI}'")


def _silence() -> None:
    """Switch off the telemetry of packages that are imported from now on, in this process and those that it starts."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _import(name: str, cure: str = _CURE) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        refuse_shortage(error, f"importing {name}")
        if importlib.util.find_spec(name) is not None:
            raise MissingPluginError(
                f"the package {name} is installed, but cannot be imported ({error!s:.300}); install it again: {cure}"
            ) from error
        raise MissingPluginError(f"this needs the package {name}, which is not installed; {cure}") from error


def last_line(error: Exception) -> str:
    """Return the last line of an error's message, without the source locations that onnxruntime puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = _LOCATION.sub("", lines[-1]) if lines else type(error).__name__
    return refused_operator(last) or last[-300:]


def refused_operator(message: str) -> str:
    """Return what to say of an operator that onnxruntime does not have, from its message; empty if it names none."""
    found = _OPERATOR.search(message)
    return (
        f"the operator {found[1]} is none that the installed ONNX Runtime computes, and edgekit loads no libraries of "
        "operators; export the model without it, or pip install -U onnxruntime"
        if found
        else ""
    )


def devices() -> list[str]:
    """Return one line per execution provider that the installed onnxruntime can use."""
    package = onnxruntime()
    return [f"{name}: ONNX Runtime {package.__version__}" for name in package.get_available_providers()]


__all__ = ["FATAL_ONLY", "devices", "genai", "last_line", "onnx", "onnxruntime", "refused_operator"]
