"""The options of loading a model: device, hints, precision, cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from edgekit.errors import UsageError
from edgekit.runtime import refuse_unknown_options
from edgekit_openvino.library import core

Hint = Literal["latency", "throughput"]

#: Properties to compute in float32 only: without rounding activations to 8 bits, or keys and values to 8 or 16.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
#: Names of virtual devices that choose among the others.
VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
_HINTS = ("latency", "throughput")
_PRECISIONS = ("f32", "f16", "bf16")


@attrs.frozen
class Options:
    """The options of compiling a model.

    Attributes:
        device: ``CPU``, ``GPU``, ``NPU``, one of several (``GPU.1``), or ``AUTO``, which chooses, optionally among
            candidates (``AUTO:GPU,CPU``).
        hint: ``latency`` for one request at a time, ``throughput`` for many; None leaves it to the device.
        exact: whether to compute in float32 only, for comparisons; slower.
        precision: ``f32``, ``f16`` or ``bf16``, in which to compute; None takes the device's default.
        cache_dir: a directory in which compiled models are cached, so that the next start is faster; None for none.
        threads: number of CPU threads; None for all.
        mmap: whether to map the weights into memory instead of reading them; truncating a mapped file while the model
            computes ends the process.
        genai: whether OpenVINO GenAI generates greedy text; None uses it if it is installed and supports the model.
        properties: further properties for OpenVINO; they override the other options.
    """

    device: str = "CPU"
    hint: Hint | None = None
    exact: bool = False
    precision: str | None = None
    cache_dir: Path | None = None
    threads: int | None = None
    mmap: bool = True
    genai: bool | None = None
    properties: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Return the checked options of `edgekit.load`.

        Raises:
            UsageError: an option is unknown, or its value is not allowed; the message lists what is.
        """
        refuse_unknown_options("openvino", options, [field.name for field in attrs.fields(cls)])
        if options.get("cache_dir") is not None:
            options["cache_dir"] = Path(os.fspath(options["cache_dir"]))
        return cls(**options)

    def __attrs_post_init__(self) -> None:
        _one_of("hint", self.hint, _HINTS)
        _one_of("precision", self.precision, _PRECISIONS)
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise UsageError(f"threads {self.threads!r}; choose 1 or more")
        if self.exact and self.precision not in (None, "f32"):
            raise UsageError(f"exact computes in f32, precision is {self.precision}; choose one of the two")
        check_device(self.device)

    def compiled_with(self) -> dict[str, Any]:
        """The properties for `openvino.Core.compile_model`."""
        properties: dict[str, Any] = dict(EXACT) if self.exact else {}
        if self.hint:
            properties["PERFORMANCE_HINT"] = self.hint.upper()
        if self.precision:
            properties["INFERENCE_PRECISION_HINT"] = self.precision
        if self.cache_dir is not None:
            properties["CACHE_DIR"] = str(self.cache_dir)
        if self.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self.threads
        return properties | dict(self.properties)

    def pipeline_with(self) -> dict[str, Any]:
        """The properties for `openvino_genai.LLMPipeline`, including how it reads the files."""
        return {**({} if self.mmap else {"ENABLE_MMAP": False}), **self.compiled_with()}


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value!r}; choose {' or '.join(allowed)}")


def check_device(device: str) -> None:
    """Raise an error for a device that openvino does not report.

    Raises:
        UsageError: the device is not available; the message names those that are.
    """
    first, _, candidates = device.partition(":")
    available = core().available_devices
    requested = [name.strip().lstrip("-") for name in candidates.split(",")] if candidates else []
    if first not in VIRTUAL:
        requested = [device]
    for name in requested:
        plain = name.partition("(")[0]
        # A single device of a kind is reported as GPU, several as GPU.0, GPU.1, …; GPU then means the first.
        if plain not in available and not any(installed.partition(".")[0] == plain for installed in available):
            raise UsageError(f"device {plain!r} is not there; OpenVINO finds {', '.join([*available, 'AUTO'])}")


__all__ = ["EXACT", "VIRTUAL", "Hint", "Options", "check_device"]
