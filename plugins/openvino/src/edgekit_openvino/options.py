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

#: What computes in float32 throughout: no activation is rounded to 8 bits, no key or value to 8 or 16.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
#: Names of devices that choose among the others.
VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
_HINTS = ("latency", "throughput")
_PRECISIONS = ("f32", "f16", "bf16")


@attrs.frozen
class Options:
    """How OpenVINO compiles a model.

    Attributes:
        device: ``CPU``, ``GPU``, ``NPU``, one of several (``GPU.1``), or ``AUTO``, which chooses; with candidates
            ``AUTO:GPU,CPU``.
        hint: ``latency`` for one answer at a time, ``throughput`` for many; None leaves it to the device.
        exact: compute in float32 throughout, for comparisons; slower.
        precision: ``f32``, ``f16`` or ``bf16``, in which to compute; None takes what the device prefers.
        cache_dir: a directory for compiled models, so that the next start is faster; None for none.
        threads: of the CPU; None for all.
        mmap: map the weights instead of reading them into memory; a mapped file that is cut while the model computes
            ends the process.
        genai: whether OpenVINO GenAI generates what is greedy; None: where it is installed and can.
        properties: passed on to OpenVINO as they are; they win over the others.
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
        """Check the options of `edgekit.load`.

        Raises:
            UsageError: an option that is not known, or a value that is not allowed; names what is.
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
        """Properties for `openvino.Core.compile_model`."""
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
        """Properties for `openvino_genai.LLMPipeline`, which reads the files too."""
        return {**({} if self.mmap else {"ENABLE_MMAP": False}), **self.compiled_with()}


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value!r}; choose {' or '.join(allowed)}")


def check_device(device: str) -> None:
    """Refuse a device that the library does not report.

    Raises:
        UsageError: names the devices that are there.
    """
    first, _, candidates = device.partition(":")
    available = core().available_devices
    requested = [name.strip().lstrip("-") for name in candidates.split(",")] if candidates else []
    if first not in VIRTUAL:
        requested = [device]
    for name in requested:
        plain = name.partition("(")[0]
        # A device alone of its kind is GPU; one of several GPU.0, GPU.1; GPU then stands for the first.
        if plain not in available and not any(installed.partition(".")[0] == plain for installed in available):
            raise UsageError(f"device {plain!r} is not there; OpenVINO finds {', '.join([*available, 'AUTO'])}")


__all__ = ["EXACT", "VIRTUAL", "Hint", "Options", "check_device"]
