"""Access to the packages mlx and mlx-lm, which are imported on first use; devices, and the installed rounding rule."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any, Literal

import numpy as np

from edgekit.errors import MissingPluginError, UsageError
from edgekit.files.memory import refuse_shortage
from edgekit.typing import Array

_CURE = "pip install edgekit-mlx"
#: The version of mlx that encoders, decoders and logits are tested against.
PROVED = "0.32.4"
_IMPORTING = threading.RLock()

Rounding = Literal["up", "nearest"]


@functools.cache
def core() -> Any:
    """Return the module `mlx.core`.

    Raises:
        MissingPluginError: mlx is not installed.
    """
    return _import("mlx.core")


@functools.cache
def nn() -> Any:
    """Return the module `mlx.nn`; raises as `core`."""
    return _import("mlx.nn")


@functools.cache
def tree_flatten() -> Any:
    """Return the function `mlx.utils.tree_flatten`; raises as `core`."""
    return _import("mlx.utils").tree_flatten


@functools.cache
def tree_unflatten() -> Any:
    """Return the function `mlx.utils.tree_unflatten`; raises as `core`."""
    return _import("mlx.utils").tree_unflatten


@functools.cache
def optimizers() -> Any:
    """Return the module `mlx.optimizers`; raises as `core`."""
    return _import("mlx.optimizers")


@functools.cache
def lm(module: str) -> Any:
    """Return a module of mlx-lm, such as ``models.llama``.

    Raises:
        MissingPluginError: mlx-lm is not installed, or has no such module.
    """
    return _import(f"mlx_lm.{module}")


def has_lm(module: str) -> bool:
    """Return whether mlx-lm has a module of that name; imports mlx-lm, but not the module."""
    _import("mlx_lm")
    return importlib.util.find_spec(f"mlx_lm.{module}") is not None


def _import(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _IMPORTING, _file_limit_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        refuse_shortage(error, f"importing {name}")
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            raise MissingPluginError(
                f"{name} is installed, but cannot be imported ({error!s:.300}); install it again: {_CURE}"
            ) from error
        raise MissingPluginError(f"this needs {name.replace('_', '-')}, which is not installed; {_CURE}") from error


@contextlib.contextmanager
def _file_limit_kept() -> Iterator[None]:
    """Restore the process's limit of open files after the block: importing mlx_lm.utils lowers it to 4,096."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real


def version() -> str:
    """Return the installed version of mlx."""
    return metadata.version("mlx")


def to_mlx(array: Array) -> Any:
    """Return a numpy array as an `mx.array`; ml_dtypes' bfloat16 becomes MLX's bfloat16."""
    mx = core()
    if array.dtype.name == "bfloat16":
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)


def from_mlx(array: Any) -> Array:
    """Return an `mx.array` as a numpy array; bfloat16 becomes ml_dtypes' bfloat16."""
    mx = core()
    if array.dtype == mx.bfloat16:
        import ml_dtypes

        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)


@functools.cache
def exponent_rounding() -> Rounding:
    """Return how the installed MLX rounds the exponents of mxfp4 and mxfp8.

    Since 0.32.4 (MLX #4353) it is ``up``, so that no element saturates; earlier versions round to the ``nearest``
    integer. Decoding is the same in both.
    """
    mx = core()
    # The largest magnitude is 6 * 1.2: log2(1.2) = 0.26 is 1 if rounded up and 0 if rounded to nearest.
    with mx.stream(mx.cpu):
        _, scales, *_ = mx.quantize(mx.full((1, 32), 7.2), mode="mxfp4")
        return "up" if int(scales[0, 0].item()) == 128 else "nearest"


def devices() -> list[str]:
    """Return the lines of `edgekit doctor`: the devices, and the rounding rule of the installed version."""
    mx = core()
    rounds = exponent_rounding()
    lines = [f"{name} ({device_name(name)})" for name in available()]
    proved = "as proved" if version() == PROVED else f"edgekit is proved against {PROVED}"
    lines.append(f"MLX {version()}, {proved}; mxfp4 and mxfp8 round exponents {rounds}")
    if mx.metal.is_available():
        lines.append("Metal: edgekit was proved on the CPU backend")
    return lines


def available() -> list[str]:
    """Return the names of the devices that MLX can use here: ``cpu``, and ``gpu`` if Metal or CUDA is available."""
    mx = core()
    return ["cpu", *(["gpu"] if mx.is_available(mx.gpu) else [])]


def device_name(device: str) -> str:
    """Return the vendor's name of a device."""
    mx = core()
    return str(mx.device_info(getattr(mx, device)).get("device_name", "unknown"))


def chosen(device: str | None) -> str:
    """Return the name of the requested device, or of MLX's default for None.

    Raises:
        UsageError: the device is not available; the message names those that are.
    """
    if device is None:
        return "gpu" if core().default_device() == core().gpu else "cpu"
    if device not in available():
        raise UsageError(f"device {device!r:.80} is not there; MLX finds {', '.join(available())}")
    return device


__all__ = [
    "PROVED",
    "Rounding",
    "available",
    "chosen",
    "core",
    "device_name",
    "devices",
    "exponent_rounding",
    "from_mlx",
    "has_lm",
    "lm",
    "nn",
    "optimizers",
    "to_mlx",
    "tree_flatten",
    "tree_unflatten",
    "version",
]
