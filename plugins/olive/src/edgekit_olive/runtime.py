"""Runs ONNX models: any graph by the names of its inputs, and decoders with logits, text, chat and embeddings.

Sampling, stop texts and checks are edgekit's, so that arguments mean the same in every runtime. Keys and values stay in
ONNX Runtime's memory from token to token.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.blocks import NO_PREDICTION
from edgekit.architectures.hf import config_from_hf
from edgekit.artifact import Artifact
from edgekit.errors import (
    EdgekitError,
    InvalidFileError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.files.memory import refuse_shortage
from edgekit.runtime import Prompt, TextRuntime
from edgekit.runtime.graphs import DecoderGraph, Port, checked_inputs
from edgekit.typing import F32, I64, Array
from edgekit_olive.graphs import Variant, multiplies_out, states_of, variant
from edgekit_olive.graphs import exact as exact_graph
from edgekit_olive.library import last_line, onnxruntime
from edgekit_olive.options import Options
from edgekit_olive.reading import parse
from edgekit_olive.writer import graph_file

_PAST = "past"
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
Arrays = Mapping[str, Array]


def open_runtime(
    artifact: Artifact,
    *,
    device: str = "auto",
    exact: bool = False,
    threads: int = 0,
    context: int | None = None,
) -> OnnxRuntime:
    """Load an ONNX model.

    Args:
        artifact: a model opened by edgekit, whose reader checks every offset.
        device: ``auto``, or the short name of an execution provider: ``cpu``, ``cuda``, ``dml``, ``coreml`` …
        exact: whether to never round activations, for comparisons; several times slower with quantized weights.
        threads: number of threads in an operator; 0 for as many as there are cores.
        context: largest number of tokens; None for as many as the model was trained for.

    Raises:
        UsageError: an option is out of range.
        ResourceError: the provider is not available, or cannot compute the graph.
        InvalidFileError: onnxruntime refuses the graph.
    """
    return OnnxRuntime(artifact, Options(device, exact, threads, context))


class OnnxRuntime(TextRuntime):
    """A model that ONNX Runtime runs; see `edgekit.runtime.Runtime`. Calls of several threads run one after the other.

    Sessions are created on first use: one for the logits of all tokens, one for the logits after the last token, one
    for embeddings.

    Example:
        >>> with edgekit.load("model-onnx", runtime="onnxruntime") as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    name = "onnxruntime"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact, self.options, self.most_context = artifact, options, options.context
        self._path = graph_file(artifact.path)
        proto = parse(self._path).proto
        self._proto: Any = exact_graph(proto) if options.exact else proto
        self._config = known_config(artifact)
        #: Which graph gives the logits after a prompt.
        self._stepping: Variant = "all" if states_of(self._proto) is None else "last"
        self._lock = threading.RLock()
        self._sessions: dict[Variant, _Session] | None = {}
        # Create the session that is needed first now, so that a model that cannot run is refused here.
        self._session("all" if self._config is None else self._stepping)

    # Any graph.

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """The graph's inputs: name -> element type and shape, with None for a dimension of any size."""
        return {port.name: _described(port) for port in self._session("all").inputs.values()}

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        """Run the graph once.

        Args:
            inputs: name -> array, with the types and shapes of the property `inputs`.

        Returns:
            Every output by its name, in the order of the graph.

        Raises:
            UsageError: an input is missing or unknown, or has a type or shape that the graph does not take.
        """
        session = self._session("all")
        with self._lock:
            return session.run(session.checked(inputs))

    # Decoders.

    def longest(self) -> int:
        """See `edgekit.runtime.TextRuntime.longest`."""
        return self._decoder().context

    def vocabulary(self) -> int:
        """See `edgekit.runtime.TextRuntime.vocabulary`."""
        return self._predicting().vocab

    def description(self) -> dict[str, Any]:
        """Return the execution providers in order of preference, the context in tokens, and onnxruntime's version."""
        session = self._session(self._stepping)
        return {
            "providers": list(session.session.get_providers()),
            "exact": self.options.exact,
            "context": self.context,
            "onnxruntime": onnxruntime().__version__,
        }

    def rows(self, ids: I64) -> F32:
        """See `edgekit.runtime.TextRuntime.rows`."""
        session = self._session("all")
        with self._lock:
            session.forget()
            scores = session.step(ids)
            session.forget()
        return scores

    def after(self, ids: list[int]) -> F32:
        """See `edgekit.runtime.TextRuntime.after`."""
        with self._lock:
            return self._session(self._stepping).after(ids, self._decoder())

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text or token ids, float32 [dim], of length 1, pooled as the files specify.

        Raises:
            UsageError: the text is empty, there is no tokenizer, or another program wrote the graph.
            ContextOverflowError: there are more tokens than the context holds.
            NonFiniteError: the model computes values that are not finite.
        """
        ids = self.checked_ids(self.whole_ids(text), self._decoder().vocab)
        self.room(len(ids), None)
        if states_of(self._proto) is None:
            raise UsageError(f"{self._path}: its graph does not say where its states are; run it with infer")
        session = self._session("hidden")
        with self._lock:
            session.forget()
            states = session.step(ids[None])[0]
            session.forget()
        return self.pooled(states)

    def close(self) -> None:
        """Release the sessions; may be called more than once."""
        with self._lock:
            self._sessions = None

    def _session(self, which: Variant) -> _Session:
        with self._lock:
            if self._sessions is None:
                raise UsageError("the runtime is closed; open the model again")
            if which not in self._sessions:
                self._sessions[which] = _Session.open(self._path, variant(self._proto, which), self.options)
            return self._sessions[which]

    def _decoder(self) -> ModelConfig:
        if self._config is None:
            raise UnsupportedModelError(
                f"{self._path}: edgekit does not know it as a language model; run it with infer"
            )
        return self._config

    def _predicting(self) -> ModelConfig:
        config = self._decoder()
        if not FAMILIES[config.family].network(config).predicts:
            raise UnsupportedModelError(f"{self._path}: {NO_PREDICTION}")
        return config


class _Session(DecoderGraph):
    """A session with its states, and the token ids that the states hold."""

    def __init__(self, session: Any, path: Path) -> None:
        super().__init__()
        self.session, self._path = session, path
        self.inputs = {port.name: port for port in session.get_inputs()}
        self._outputs = [port.name for port in session.get_outputs()]
        self._remembered = {name: _present(name, self._outputs) for name in self.inputs if name.startswith(_PAST)}
        self._states: dict[str, Any] = {}

    @classmethod
    def open(cls, path: Path, proto: Any, options: Options) -> _Session:
        library, wanted = onnxruntime(), options.session()
        wanted.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        # From the second run of a shape on, a memory pattern keeps one block for everything: the decoded weights again.
        wanted.enable_mem_pattern = not multiplies_out(proto)
        providers = options.providers()
        try:
            session = library.InferenceSession(proto.SerializeToString(), wanted, providers=providers)
        except Exception as error:  # onnxruntime's own classes derive from Exception or RuntimeError
            refuse_shortage(error, f"{path}: loading it with ONNX Runtime", _bytes(path))
            raise InvalidFileError(f"{path}: ONNX Runtime refuses it: {last_line(error)}") from error
        if session.get_providers()[0] != providers[0]:
            raise ResourceError(
                f"{path}: ONNX Runtime fell back from {providers[0]} to {session.get_providers()[0]}; see that its "
                "libraries are installed, or choose device=cpu"
            )
        return cls(session, path)

    def reset(self) -> None:
        """See `DecoderGraph.reset`."""
        self._states.clear()

    def step(self, ids: I64) -> F32:
        """See `DecoderGraph.step`."""
        given = self.step_inputs(ids)
        binding = self.session.io_binding()
        for name in self.inputs:
            if name in self._remembered:
                binding.bind_ortvalue_input(name, self._states.get(name) or self._empty(name, len(ids)))
            elif name in given:
                binding.bind_cpu_input(name, np.ascontiguousarray(given[name]))
            else:
                raise UnsupportedModelError(f"{self._path}: its graph has the input {name!r}; run it with infer")
        for name in self._outputs:
            binding.bind_output(name)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            refuse_shortage(error, f"{self._path}: computing it")
            raise ResourceError(f"{self._path}: the device cannot compute it: {last_line(error)}") from error
        found = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        self._states = {past: found[present] for past, present in self._remembered.items()}
        scores: F32 = found[self._outputs[0]].numpy().astype(np.float32, copy=False)
        return scores

    def _empty(self, name: str, batch: int) -> Any:
        """Return the initial value of a state: no keys and values, or zeros."""
        port = self.inputs[name]
        sizes = [size if isinstance(size, int) else 0 for size in port.shape]
        sizes[0] = batch
        return onnxruntime().OrtValue.ortvalue_from_numpy(np.zeros(sizes, _DTYPES[port.type]))

    def run(self, inputs: Arrays) -> dict[str, Array]:
        try:
            found = self.session.run(None, dict(inputs))
        except Exception as error:
            refuse_shortage(error, f"{self._path}: computing it")
            raise ResourceError(f"{self._path}: the device cannot compute it: {last_line(error)}") from error
        return dict(zip(self._outputs, found, strict=True))

    def checked(self, inputs: Arrays) -> dict[str, Array]:
        """Return the inputs as arrays of the graph's types; raise `UsageError` if the graph does not take them."""
        return checked_inputs(inputs, {name: _port(port) for name, port in self.inputs.items()}, self._path)


def _present(past: str, outputs: Sequence[str]) -> str:
    """Return the output that is an input at the next token: ``present.0.key`` for ``past_key_values.0.key``."""
    name = past.replace("past_key_values", "present").replace("past_", "present_")
    if name not in outputs:
        raise UnsupportedModelError(f"the graph has the input {past!r} and no output {name!r}; run it with infer")
    return name


def _port(port: Any) -> Port:
    dtype = _DTYPES.get(port.type)
    return Port(*_described(port), None if dtype is None else np.dtype(dtype))


def _described(port: Any) -> tuple[str, tuple[int | None, ...]]:
    sizes = tuple(size if isinstance(size, int) else None for size in port.shape)
    return port.type.removeprefix("tensor(").removesuffix(")"), sizes


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def known_config(artifact: Artifact) -> ModelConfig | None:
    """Return the configuration of a decoder; if another program wrote it, from a config.json beside it."""
    try:
        return artifact.model.config
    except UnsupportedModelError:
        pass
    try:
        return config_from_hf(artifact.config, str(artifact.path)) if artifact.config else None
    except EdgekitError:
        return None


__all__ = ["OnnxRuntime", "known_config", "open_runtime"]
