"""Runs OpenVINO IR: any graph by the names of its inputs, and decoders with logits, text, chat and embeddings."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.architectures.blocks import NO_PREDICTION
from edgekit.architectures.rope import turns_change
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, ResourceError, UnsupportedModelError, UsageError
from edgekit.files.memory import refuse_shortage
from edgekit.files.reader import Mapped
from edgekit.runtime import Prompt, Sampling, TextRuntime
from edgekit.runtime.graphs import DecoderGraph, Port, checked_inputs
from edgekit.typing import F32, I64, Array
from edgekit_openvino import pipeline
from edgekit_openvino.graphs import Variant, read_model, variant
from edgekit_openvino.library import core, last_line, openvino
from edgekit_openvino.options import Options

_CUT = "load the model again from a whole file; mmap=False reads it into memory"
Arrays = Mapping[str, Array]


def open_runtime(artifact: Artifact, **options: Any) -> OpenVinoRuntime:
    """Load an IR.

    Args:
        artifact: an IR opened by edgekit, whose reader checks every offset.
        options: the attributes of `edgekit_openvino.options.Options`: device, hint, exact, precision, cache_dir,
            threads, mmap, genai, properties.

    Raises:
        UsageError: an option is unknown, or the device is not available.
        InvalidFileError: openvino refuses the graph.
    """
    return OpenVinoRuntime(artifact, Options.of(**options))


class OpenVinoRuntime(TextRuntime):
    """A model that OpenVINO runs; see `edgekit.runtime.Runtime`. Calls from several threads run one after the other.

    Graphs are compiled on first use: GenAI's for greedy text, one for the logits of all tokens, one for the logits
    after the last token, one for embeddings. OpenVINO GenAI, if installed, generates greedy text; edgekit samples, so
    that arguments mean the same in every runtime. Both compute with the same graph.

    Example:
        >>> with edgekit.load("model-ir", runtime="openvino", device="CPU") as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    name = "openvino"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact, self.options = artifact, options
        self._config = _known(artifact)
        self._lock = threading.RLock()
        self._compiled: dict[Variant, _Graph] | None = {}
        self._pipeline: pipeline.Pipeline | None = None
        # Compile the graph that is needed first now, so that a model that cannot run is refused here.
        if self._config is None:
            self._graph("all")
        elif not self._config.causal:
            self._graph("hidden")
        elif self._uses_genai(2):
            self._genai()
        else:
            self._graph("last")

    # Any graph.

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """The graph's inputs: name -> element type and shape, with None for a dimension of any size."""
        return {port.any_name: _described(port) for port in self._graph("all").compiled.inputs}

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        """Run the graph once; the states of a stateful graph are reset before.

        Args:
            inputs: name -> array, with the types and shapes of the property `inputs`.

        Returns:
            Every output by its name, in the order of the graph.

        Raises:
            UsageError: an input is missing or unknown, or has a type or shape that the graph does not take.
        """
        graph = self._graph("all")
        with self._lock:
            graph.forget()
            return graph.run(graph.checked(inputs))

    def infer_many(self, batches: Iterable[Arrays], *, jobs: int = 0) -> list[dict[str, Array]]:
        """Run the graph on many inputs, several at a time, through an asynchronous queue.

        Args:
            batches: the inputs of each run, as for `infer`.
            jobs: number of concurrent runs; 0 takes the device's optimum, which is larger with ``hint="throughput"``.

        Returns:
            The outputs, in the order of the inputs.

        Raises:
            UsageError: as for `infer`, or `jobs` is negative.
        """
        if jobs < 0:
            raise UsageError(f"jobs {jobs}; choose 0 (what the device does best) or more")
        return self._graph("all").run_many(batches, jobs)

    # Decoders.

    def longest(self) -> int:
        """See `edgekit.runtime.TextRuntime.longest`."""
        return self._decoder().context

    def vocabulary(self) -> int:
        """See `edgekit.runtime.TextRuntime.vocabulary`."""
        return self._predicting().vocab

    def rows(self, ids: I64) -> F32:
        """See `edgekit.runtime.TextRuntime.rows`."""
        graph = self._graph("all")
        with self._lock:
            graph.forget()
            return graph.step(ids)

    def after(self, ids: list[int]) -> F32:
        """See `edgekit.runtime.TextRuntime.after`."""
        with self._lock:
            return self._graph("last").after(ids, self._decoder())

    def continued(self, ids: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        """Yield tokens, greedy ones from GenAI; see `edgekit.runtime.TextRuntime.continued`."""
        if count and sampling.greedy and self._uses_genai(len(ids) + count):
            return self._genai().greedy(ids, count)
        return super().continued(ids, count, sampling)

    def _genai(self) -> pipeline.Pipeline:
        with self._lock:
            if self._compiled is None:
                raise UsageError("the runtime is closed; open the model again")
            if self._pipeline is None:
                options = self.options
                self._pipeline = pipeline.Pipeline(
                    self.artifact.path, options.device, options.pipeline_with(), mapped(_xml(self.artifact), options)
                )
            return self._pipeline

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text or token ids, float32 [dim], of length 1, pooled as the files specify.

        Raises:
            UsageError: the text is empty, or the model has no tokenizer.
            ContextOverflowError: there are more tokens than the context holds.
            NonFiniteError: the model computes values that are not finite.
        """
        ids = self.checked_ids(self.whole_ids(text), self._decoder().vocab)
        self.room(len(ids), None)
        graph = self._graph("hidden")
        with self._lock:
            graph.forget()
            return self.pooled(graph.step(ids[None])[0])

    def close(self) -> None:
        """Release the compiled graphs; may be called more than once."""
        with self._lock:
            self._compiled = self._pipeline = None

    def _graph(self, which: Variant) -> _Graph:
        with self._lock:
            if self._compiled is None:
                raise UsageError("the runtime is closed; open the model again")
            if which not in self._compiled:
                self._compiled[which] = _Graph.compile(_xml(self.artifact), which, self.options)
            return self._compiled[which]

    def _decoder(self) -> ModelConfig:
        if self._config is None:
            raise UnsupportedModelError(
                f"{self.artifact.path}: edgekit does not know it as a language model; run it with infer"
            )
        return self._config

    def _predicting(self) -> ModelConfig:
        config = self._decoder()
        if not config.causal:
            raise UnsupportedModelError(f"{self.artifact.path}: {NO_PREDICTION}")
        return config

    def _uses_genai(self, length: int) -> bool:
        """Return whether GenAI generates the text; it cannot restart when the rotation of positions changes."""
        genai = self.options.genai
        if genai is False or turns_change(self._decoder(), 1, length):
            return False
        lacking = [name for name in pipeline.NEEDED if not (self.artifact.path / name).is_file()]
        if genai and lacking:
            raise UsageError(f"{self.artifact.path}: it has no {lacking[0]}; convert it again with the genai extra")
        return not lacking and importlib.util.find_spec("openvino_genai") is not None


class _Graph(DecoderGraph):
    """A compiled graph with one inference request, and the token ids that its states hold."""

    def __init__(self, compiled: Any, path: Path, mapped: Mapped | None) -> None:
        super().__init__()
        self.compiled, self._path, self._mapped = compiled, path, mapped
        self._request = compiled.create_infer_request()
        self._ports = {port.any_name: port for port in compiled.inputs}

    @classmethod
    def compile(cls, xml: Path, which: Variant, options: Options) -> _Graph:
        model = read_model(xml, options.mmap)
        try:
            compiled = core().compile_model(variant(model, which, xml), options.device, options.compiled_with())
        except RuntimeError as error:
            refuse_shortage(error, f"{xml}: compiling it for {options.device}", xml.with_suffix(".bin").stat().st_size)
            raise ResourceError(f"{xml}: {options.device} cannot compile it: {last_line(error)}") from error
        return cls(compiled, xml, mapped(xml, options))

    def reset(self) -> None:
        """See `DecoderGraph.reset`."""
        self._request.reset_state()

    def step(self, ids: I64) -> F32:
        """See `DecoderGraph.step`."""
        given: Arrays = {**self.step_inputs(ids), "beam_idx": np.arange(len(ids), dtype=np.int32)}
        first = next(iter(self.run({name: given[name] for name in self._ports}).values()))
        logits: F32 = first.astype(np.float32, copy=False)
        return logits

    def run(self, inputs: Arrays) -> dict[str, Array]:
        self.refuse_cut()
        try:
            self._request.infer(dict(inputs))
        except RuntimeError as error:
            refuse_shortage(error, f"{self._path}: computing it")
            raise ResourceError(f"{self._path}: the device cannot compute it: {last_line(error)}") from error
        return _outputs(self._request, self.compiled)

    def run_many(self, batches: Iterable[Arrays], jobs: int) -> list[dict[str, Array]]:
        outputs: dict[int, dict[str, Array]] = {}

        def done(request: Any, number: int) -> None:
            outputs[number] = _outputs(request, self.compiled)
            request.reset_state()

        self.refuse_cut()
        waiting = openvino().AsyncInferQueue(self.compiled, jobs)
        waiting.set_callback(done)
        for number, inputs in enumerate(batches):
            waiting.start_async(self.checked(inputs), number)
        waiting.wait_all()
        return [outputs[number] for number in sorted(outputs)]

    def refuse_cut(self) -> None:
        """Raise an error if the mapped weights have been truncated: accessing them would end the process."""
        if self._mapped is not None:
            self._mapped.refuse_cut()

    def checked(self, inputs: Arrays) -> dict[str, Array]:
        """Return the inputs as arrays of the graph's types; raise `UsageError` if the graph does not take them."""
        return checked_inputs(inputs, {name: _port(port) for name, port in self._ports.items()}, self._path)


def _port(port: Any) -> Port:
    return Port(*_described(port), np.dtype(port.element_type.to_dtype()))


def _described(port: Any) -> tuple[str, tuple[int | None, ...]]:
    shape = port.partial_shape
    sizes = () if shape.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in shape)
    return port.element_type.get_type_name(), sizes


def _outputs(request: Any, compiled: Any) -> dict[str, Array]:
    """Return copies of all outputs by name; the request's own arrays are overwritten by its next run."""
    return {
        (port.any_name if port.names else f"output {number}"): np.array(request.get_output_tensor(number).data)
        for number, port in enumerate(compiled.outputs)
    }


def mapped(xml: Path, options: Options) -> Mapped | None:
    """Return the weights' file if OpenVINO maps it into memory, else None."""
    binary = xml.with_suffix(".bin")
    return Mapped((binary,), _CUT) if options.mmap and binary.exists() else None


def _known(artifact: Artifact) -> ModelConfig | None:
    try:
        return artifact.model.config
    except (UnsupportedModelError, InvalidFileError):
        return None


def _xml(artifact: Artifact) -> Path:
    return next(file for file in artifact.files if file.suffix == ".xml")


__all__ = ["Arrays", "OpenVinoRuntime", "mapped", "open_runtime"]
