"""The openvino package: imported when it is first used, without telemetry, and asked what is there."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Any

from edgekit.errors import MissingPluginError


@functools.cache
def openvino() -> ModuleType:
    """The openvino package.

    Raises:
        MissingPluginError: it is not installed.
    """
    return _import("openvino", "pip install edgekit-openvino")


def genai() -> ModuleType:
    """openvino_genai, which generates text.

    Raises:
        MissingPluginError: it is not installed.
    """
    return _import("openvino_genai", "pip install 'edgekit-openvino[genai]'")


def tokenizers() -> ModuleType:
    """openvino_tokenizers, which turns tokenizers into models.

    Raises:
        MissingPluginError: it is not installed.
    """
    return _import("openvino_tokenizers", "pip install 'edgekit-openvino[genai]'")


def _import(name: str, cure: str) -> ModuleType:
    os.environ.setdefault("NNCF_CI", "1")  # what it and openvino have for telemetry stays silent
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPluginError(f"this needs the package {name}, which is not installed; {cure}") from error


@functools.cache
def core() -> Any:
    """One `openvino.Core` for the process: it holds the device plugins and their caches."""
    return openvino().Core()


def devices() -> list[str]:
    """A line for each device that the library reports."""
    found = core()
    return [_described(found, device) for device in found.available_devices]


def _described(found: Any, device: str) -> str:
    name = found.get_property(device, "FULL_DEVICE_NAME")
    capabilities = ", ".join(found.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    return f"{device}: {name} ({capabilities})"
