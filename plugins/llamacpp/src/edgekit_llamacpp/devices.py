"""ggml's devices with their memory, and the number of a model's layers that fit.

ggml's C functions are called through the library that llama-cpp-python loads; its Python module does not declare them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit_llamacpp.library import BUILD, features, llama

#: ``enum ggml_backend_dev_type``: main memory; memory of its own; shares the main memory; helps the CPU (BLAS, AMX).
_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}
#: Bytes of each device that stay free, for its driver and llama.cpp's buffers; as llama.cpp's ``--fit``.
MARGIN = 1 << 30
#: Tokens of a batch of llama.cpp; their logits are stored on the device.
_BATCH = 512
_BLOCK = re.compile(r"blk\.(\d+)\.")


@attrs.frozen
class Device:
    """A device of ggml's.

    Attributes:
        name: ggml's, such as ``CUDA0``, ``Metal``, ``Vulkan1``, ``CPU``.
        description: the driver's name for it.
        kind: ``cpu``, ``gpu``, ``igpu`` (it shares the main memory) or ``accel`` (it helps the CPU).
        free, total: bytes of memory; 0 if the backend does not report them.
    """

    name: str
    description: str
    kind: str
    free: int
    total: int

    def __str__(self) -> str:
        memory = f", {self.free / 1e9:.1f} of {self.total / 1e9:.1f} GB free" if self.total else ""
        return f"{self.name}: {self.description or self.kind}{memory}"


def list_devices() -> list[Device]:
    """Return the devices of the installed build, from ``ggml_backend_dev_*``; empty if it lacks these functions.

    Raises:
        MissingPluginError: llama-cpp-python cannot be loaded.
    """
    llama()  # it registers the backends
    try:
        count = _function("ggml_backend_dev_count", ctypes.c_size_t)()
        get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
        return [_device(ctypes.c_void_p(get(index))) for index in range(count)]
    except AttributeError:  # a build from before 2025
        return []


def _device(handle: ctypes.c_void_p) -> Device:
    name, description = (
        _function(f"ggml_backend_dev_{what}", ctypes.c_char_p, ctypes.c_void_p)(handle)
        for what in ("name", "description")
    )
    kind = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(handle)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    size = ctypes.POINTER(ctypes.c_size_t)
    _function("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)(handle, free, total)
    text = [(value or b"").decode("utf-8", "replace").strip() for value in (name, description)]
    return Device(text[0], text[1], _KINDS.get(kind, "other"), free.value, total.value)


@functools.cache
def _function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a C function of ggml, from the library that exports it.

    Raises:
        AttributeError: no library exports it.
    """
    for library in _libraries():
        if hasattr(library, name):
            prototype = ctypes.CFUNCTYPE(result, *arguments)
            return prototype((name, library))
    raise AttributeError(name)


@functools.cache
def _libraries() -> tuple[Any, ...]:
    ggml: Any = importlib.import_module("llama_cpp._ggml")
    loader: Any = importlib.import_module("llama_cpp._ctypes_extensions")
    try:
        return (ggml.libggml, loader.load_shared_library("ggml-base", ggml.libggml_base_path))
    except (RuntimeError, OSError):  # linked into the other
        return (ggml.libggml,)


def accelerators(devices: Sequence[Device]) -> list[Device]:
    """Return the devices on which llama.cpp places layers: all with their own memory; else the first that shares it."""
    discrete = [device for device in devices if device.kind == "gpu"]
    return discrete or [device for device in devices if device.kind == "igpu"][:1]


@attrs.frozen
class Weight:
    """The memory that a model needs on a device, in bytes.

    Attributes:
        layers: each layer with its keys and values, in order.
        output: the output matrix, and the logits of a batch.
    """

    layers: tuple[int, ...]
    output: int

    @classmethod
    def of(cls, artifact: Artifact, context: int, cache_bytes: float) -> Weight:
        """Return the sizes of a GGUF artifact, for a number of tokens and bytes per key or value."""
        layers: dict[int, int] = {}
        output = 0
        for name, tensor in artifact.tensors.items():
            block = _BLOCK.match(name)
            if block:
                layers[int(block[1])] = layers.get(int(block[1]), 0) + tensor.nbytes
            elif not name.startswith("token_embd"):  # embeddings stay in the main memory
                output += tensor.nbytes
        if "output.weight" not in artifact.tensors and "token_embd.weight" in artifact.tensors:  # tied: a copy of them
            output += artifact.tensors["token_embd.weight"].nbytes
        vocabulary = artifact.config.get("tokenizer.ggml.tokens", ())
        logits = 4 * _BATCH * len(vocabulary) if isinstance(vocabulary, tuple) else 0
        cached = int(_cached_values(artifact) * context * cache_bytes)
        return cls(tuple(layers[n] + cached for n in sorted(layers)), output + logits)


def _cached_values(artifact: Artifact) -> int:
    """Return the number of keys and values of a token in a layer; an upper bound if the family is unknown."""
    try:
        config = artifact.model.config
        return 2 * config.kv_heads * config.head_dim
    except (UnsupportedModelError, InvalidFileError):
        width = artifact.config.get(f"{artifact.config.get('general.architecture')}.embedding_length", 0)
        return 2 * int(width) if isinstance(width, int) else 0


def fitting_layers(devices: Sequence[Device], weight: Weight) -> int:
    """Return how many layers, counted from the last, fit the free memory, plus one for the output matrix.

    llama.cpp distributes the layers over devices in proportion to their free memory. The output matrix is moved with
    the first layer, so it is always counted. If a device does not report its free memory, all layers are tried.
    """
    if not devices:
        return 0
    everything = len(weight.layers) + 1
    if any(not device.total for device in devices):
        return everything
    room = sum(max(0, device.free - MARGIN) for device in devices) - weight.output
    for count, layer in enumerate(reversed(weight.layers)):
        room -= layer
        if room < 0:
            return count
    return everything if room >= 0 else 0


def choose_layers(artifact: Artifact, context: int, cache_bytes: float) -> tuple[int, list[Device]]:
    """Return the number of layers for ``gpu_layers="auto"`` and the devices; 0 and none without an accelerator."""
    if not llama().llama_supports_gpu_offload():
        return 0, []
    devices = accelerators(list_devices())
    return fitting_layers(devices, Weight.of(artifact, context, cache_bytes)), devices


def devices() -> list[str]:
    """Return lines for `edgekit doctor`: the CPU, each accelerator, and the effect of ``gpu_layers="auto"``."""
    listed = list_devices()
    # ggml reports the whole main memory as free, so only its size is shown.
    memory = next((f", {d.total / 1e9:.1f} GB" for d in listed if d.kind == "cpu" and d.total), "")
    cpu = " ".join(name for name, value in features().items() if value == "1")
    line = f"CPU: llama-cpp-python {version('llama-cpp-python')}, {cpu or 'no extensions'}{memory}"
    others = [str(device) for device in listed if device.kind != "cpu"]
    used = accelerators(listed)
    if used and llama().llama_supports_gpu_offload():
        chosen = f"gpu_layers=auto puts what fits on {', '.join(device.name for device in used)}"
        return [line, *others, f"acceleration: {chosen}"]
    cure = f"CUDA, Metal, Vulkan and others are built in: {BUILD}"
    return [line, *others, f"acceleration: none in this build or machine, so gpu_layers=auto is 0 ({cure})"]


__all__ = ["MARGIN", "Device", "Weight", "accelerators", "choose_layers", "devices", "fitting_layers", "list_devices"]
