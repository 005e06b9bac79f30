"""Runs decoders with ONNX Runtime GenAI, which keeps keys and values of one sequence and computes token by token.

Sampling, stop texts and checks are edgekit's, as in the runtime `onnxruntime`; GenAI's own tokenizer is not used.

A ``genai_config.json`` of another program is checked before GenAI reads it: it could name a library to load, and a
graph in another directory. Its execution providers, whose options can name libraries too, are not used: ``device``
chooses the provider.

Source: onnxruntime-genai 0.18, ``src/config.cpp``.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.architectures.rope import turns_change
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, ResourceError, UnsupportedModelError, UsageError
from edgekit.files.foreign import read_object, shown
from edgekit.files.memory import refuse_shortage
from edgekit.runtime import TextRuntime
from edgekit.runtime.graphs import DecoderGraph
from edgekit.typing import F32, I64
from edgekit_olive.genai import CONFIG
from edgekit_olive.library import genai, last_line
from edgekit_olive.options import refuse_wrong
from edgekit_olive.runtime import known_config
from edgekit_olive.writer import MODEL

#: Devices -> GenAI's names of their providers; the CPU needs none.
DEVICES = {"cpu": "", "cuda": "cuda", "dml": "DML", "openvino": "OpenVINO", "qnn": "QNN", "webgpu": "WebGPU"}
_LIMIT = 1 << 20
#: Parts of models that are more than one decoder.
_OTHERS = ("encoder", "embedding", "vision", "speech")
#: Options of a session that name no file.
_SESSION = (
    "disable_cpu_ep_fallback",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "graph_optimization_level",
    "inter_op_num_threads",
    "intra_op_num_threads",
    "log_id",
    "log_severity_level",
    "log_verbosity_level",
    "provider_options",
    "use_env_allocators",
)


def open_runtime(
    artifact: Artifact, *, device: str = "auto", threads: int = 0, context: int | None = None
) -> GenaiRuntime:
    """Load a directory with ``genai_config.json``.

    Args:
        artifact: a model opened by edgekit, whose reader checks every offset.
        device: ``auto``, ``cpu``, ``cuda``, ``dml``, ``openvino``, ``qnn`` or ``webgpu``.
        threads: number of threads in an operator; 0 for as many as there are cores.
        context: largest number of tokens; None for as many as the configuration has.

    Raises:
        UsageError: an option is out of range, or the artifact is no directory with a configuration for GenAI.
        UnsupportedModelError: the configuration describes something other than one decoder.
        MissingPluginError: onnxruntime-genai is not installed.
        ResourceError: the device is not available.
        InvalidFileError: the configuration is malformed, or GenAI refuses the model.
    """
    return GenaiRuntime(artifact, Options(device, threads, context))


@attrs.frozen
class Options:
    """The options of loading a model; see `open_runtime`."""

    device: str = "auto"
    threads: int = 0
    context: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.device != "auto" and self.device not in DEVICES:
            raise UsageError(f"device {self.device!r:.80}; choose auto, {', '.join(DEVICES)}")
        refuse_wrong(self.threads, self.context)

    def provider(self) -> str:
        """Return GenAI's name of the provider; empty for the CPU."""
        if self.device == "auto":
            return DEVICES["cuda"] if genai().is_cuda_available() else ""
        return DEVICES[self.device]


class GenaiRuntime(TextRuntime):
    """A decoder that ONNX Runtime GenAI runs; see `edgekit.runtime.Runtime`.

    Calls of several threads run one after the other.

    Example:
        >>> with edgekit.load("model-onnx", runtime="onnxruntime-genai") as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    name = "onnxruntime-genai"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact, self.options, self.most_context = artifact, options, options.context
        self._model = read_config(artifact.path)
        self._config = known_config(artifact)
        self._lock = threading.RLock()
        self._graph: _Generator | None = _Generator.open(artifact.path, options, self.context, padding_ids(self._model))

    def longest(self) -> int:
        """Return the number of tokens that the configuration has."""
        most: int = self._model["context_length"]
        return most

    def vocabulary(self) -> int:
        """See `edgekit.runtime.TextRuntime.vocabulary`."""
        count: int = self._model["vocab_size"]
        return count

    def description(self) -> dict[str, Any]:
        """Return the device, the context in tokens, and the version of onnxruntime-genai."""
        return {
            "device": self._loaded().device,
            "context": self.context,
            "onnxruntime-genai": genai().__version__,
        }

    def rows(self, ids: I64) -> F32:
        """See `edgekit.runtime.TextRuntime.rows`."""
        with self._lock:
            return np.stack([self._loaded().scores(row) for row in ids])

    def after(self, ids: list[int]) -> F32:
        """See `edgekit.runtime.TextRuntime.after`."""
        with self._lock:
            return self._loaded().continued(ids, self._config).copy()  # GenAI's own, which the next step overwrites

    def close(self) -> None:
        """Release the model; may be called more than once."""
        with self._lock:
            self._graph = None

    def _loaded(self) -> _Generator:
        if self._graph is None:
            raise UsageError("the runtime is closed; open the model again")
        return self._graph


class _Generator(DecoderGraph):
    """GenAI's generator of one sequence; its states are those of the first tokens of the sequence."""

    def __init__(self, generator: Any, directory: Path, device: str, padding: frozenset[int]) -> None:
        super().__init__()
        self._generator, self._directory, self.device, self._padding = generator, directory, device, padding

    @classmethod
    def open(cls, directory: Path, options: Options, context: int, padding: frozenset[int]) -> _Generator:
        library, provider = genai(), options.provider()
        threads = options.threads or os.cpu_count() or 1
        session = {"log_severity_level": 4, "intra_op_num_threads": threads}
        try:
            config = library.Config(str(directory))
            config.clear_providers()
            if provider:
                config.append_provider(provider)
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            model = library.Model(config)
            parameters = library.GeneratorParams(model)
            # A generation of edgekit's may go on after an end token, and has a sampler of its own.
            parameters.set_search_options(max_length=context, batch_size=1, num_beams=1, do_sample=False)
            return cls(library.Generator(model, parameters), directory, model.device_type, padding)
        except RuntimeError as error:
            refuse_shortage(error, f"{directory}: loading it with ONNX Runtime GenAI")
            if provider:
                raise ResourceError(
                    f"{directory}: ONNX Runtime GenAI cannot run it on {provider} ({last_line(error)}); "
                    "choose device=cpu"
                ) from error
            raise InvalidFileError(f"{directory}: ONNX Runtime GenAI refuses it: {last_line(error)}") from error

    def continued(self, ids: list[int], config: ModelConfig | None) -> F32:
        """Return the logits after the ids, float32 [vocab]; keeps the states of a common beginning.

        GenAI forgets the end of a sequence, which a graph's states cannot: a prompt that differs from the last one in
        its end is computed from the difference on.
        """
        shared = _shared(self.seen, ids[:-1])
        if shared < len(self.seen):
            if config is not None and turns_change(config, shared, len(self.seen)):
                self.forget()
            else:
                self._generator.rewind_to(shared)
                del self.seen[shared:]
        if config is not None:
            return self.after(ids, config)
        logits: F32 = self.step(np.array([ids[shared:]], np.int64))[0, -1]
        self.seen = list(ids)
        return logits

    def scores(self, ids: I64) -> F32:
        """Return the logits of every next token, float32 [n, vocab], for ids [n]; the states are forgotten."""
        self.forget()
        self.step(ids[None])
        found: F32 = self._generator.get_output("logits")[0].astype(np.float32)
        self.forget()
        return found

    def step(self, ids: I64) -> F32:
        """Return the logits after the new ids, [1, 1, vocab]; see `DecoderGraph.step`."""
        try:
            self._generator.append_tokens(ids[0].astype(np.int32))
            if int(ids[0, -1]) not in self._padding:
                logits: F32 = self._generator.get_logits()
            else:  # GenAI takes such a token at the end for padding, and gives the logits before it
                logits = self._generator.get_output("logits")[:, -1:].astype(np.float32)
        except RuntimeError as error:
            self.forget()
            refuse_shortage(error, f"{self._directory}: computing it")
            raise ResourceError(f"{self._directory}: the device cannot compute it: {last_line(error)}") from error
        return logits

    def reset(self) -> None:
        """See `DecoderGraph.reset`."""
        self._generator.rewind_to(0)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def read_config(directory: Path) -> Mapping[str, Any]:
    """Return the member ``model`` of a directory's genai_config.json, checked.

    Raises:
        UsageError: there is no such file.
        InvalidFileError: it is malformed, or names a file that edgekit did not open.
        UnsupportedModelError: it describes something other than one decoder.
    """
    path = directory / CONFIG
    given = read_object(directory, CONFIG, _LIMIT) if directory.is_dir() else None
    if given is None:
        raise UsageError(
            f"{directory}: no directory with a {CONFIG}; write one with format onnx (not onnx-portable) from a decoder "
            "without recurrences, or run it with the runtime onnxruntime"
        )
    model = given.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
        raise InvalidFileError(f"{path}: it has no model with a decoder")
    for key in ("context_length", "vocab_size"):
        if type(model.get(key)) is not int or not 1 <= model[key] < 1 << 31:
            raise InvalidFileError(f"{path}: {key} is {shown(model.get(key))}; it must be a positive integer")
    decoder = model["decoder"]
    others = [name for name in _OTHERS if name in model] + ["pipeline"] * ("pipeline" in decoder)
    if others:
        raise UnsupportedModelError(f"{path}: it has a {others[0]}; edgekit runs single decoders with GenAI")
    if decoder.get("filename") != MODEL:
        raise InvalidFileError(f"{path}: its graph is {shown(decoder.get('filename'))}; edgekit runs {MODEL} beside it")
    _refuse_files(decoder.get("session_options", {}), path)
    return model


def padding_ids(model: Mapping[str, Any]) -> frozenset[int]:
    """Return the token ids that GenAI may take for padding, from the member ``model`` of a configuration."""
    ends = model.get("eos_token_id", 0)
    given = [model.get("pad_token_id", 0), *(ends if isinstance(ends, list) else [ends])]
    return frozenset(token for token in given if type(token) is int)


def _refuse_files(options: Any, path: Path) -> None:
    """Raise an error for options of a session that could name a file."""
    if not isinstance(options, dict):
        raise InvalidFileError(f"{path}: session_options is {shown(options)}; it must be an object")
    for key in options:
        if key not in _SESSION:
            raise InvalidFileError(
                f"{path}: session_options has {shown(key)}, which may name a file or a library; remove it, edgekit "
                f"passes on {', '.join(_SESSION)}"
            )


__all__ = ["DEVICES", "GenaiRuntime", "Options", "open_runtime", "padding_ids", "read_config"]
