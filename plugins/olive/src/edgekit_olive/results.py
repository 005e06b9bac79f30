"""What passes on graphs share: reading samples, copying graphs, measurements, and the manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingPluginError, QualityGateError, UnsupportedModelError, UsageError
from edgekit.evaluation.samples import Input, Samples, read
from edgekit.files.digests import digests
from edgekit.files.foreign import member
from edgekit.formats import carried
from edgekit.manifest import Manifest
from edgekit.pipeline import open_artifact
from edgekit_olive.library import onnx
from edgekit_olive.reading import graphs_of, parse
from edgekit_olive.writer import MODEL, graph_file

_HF_INPUTS = tuple(Input(name, (None, None), "int64") for name in ("input_ids", "attention_mask"))


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise `UsageError` if a value is not one of those allowed."""
    if value not in allowed:
        raise UsageError(f"{name}={value!r:.80}; choose one of {', '.join(allowed)}")


def read_samples(source: Artifact, calibration: Samples, most: int, context: int) -> list[Any]:
    """Return at most `most` samples of the inputs of an ONNX model or a Hugging Face directory; raises as `read`."""
    if source.format == "hf":
        feeds = read(calibration, _HF_INPUTS, most=most, source=source, context=context)
        _refuse_ids(feeds, source.config.get("vocab_size"))
        return feeds
    graph = graph_file(source.path)
    inputs = inputs_of(parse(graph).proto)
    text = isinstance(calibration, str | os.PathLike) and Path(calibration).suffix != ".npz"
    states = {each.name: _empty(each) for each in inputs if text and each.name.startswith("past")}
    given = tuple(each for each in inputs if each.name not in states)
    return [feed | states for feed in read(calibration, given, most=most, source=source, context=context)]


def _refuse_ids(feeds: Iterable[Mapping[str, Any]], vocab: Any) -> None:
    """Raise `UsageError` for token ids that a model does not have."""
    for number, feed in enumerate(feeds if isinstance(vocab, int) else ()):
        ids = feed["input_ids"]
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
            raise UsageError(
                f"calibration sample {number}, input input_ids has ids from {ids.min()} to {ids.max()}; "
                f"the model has 0 to {vocab - 1}"
            )


def _empty(state: Input) -> Any:
    """Return keys or values of no earlier token."""
    sizes = [1 if at == 0 else size or 0 for at, size in enumerate(state.shape or ())]
    return np.zeros(sizes, state.dtype)


def inputs_of(proto: Any) -> tuple[Input, ...]:
    """Return the inputs of an `onnx.ModelProto` that have no initializer."""
    constants = {each.name for each in proto.graph.initializer}
    return tuple(_input(each) for each in proto.graph.input if each.name not in constants)


def _input(each: Any) -> Input:
    tensor = each.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    dtype = onnx().helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return Input(each.name, shape if tensor.HasField("shape") else None, np.dtype(dtype).name)


def copy_graph(graph: Path, to: Path, name: str) -> None:
    """Copy a graph and the files with its weights, whose names it has inside."""
    shutil.copyfile(graph, to / name)
    proto = onnx().load(str(graph), load_external_data=False)
    for location in sorted({e.value for t in _tensors(proto) for e in t.external_data if e.key == "location"}):
        file = member(graph.parent, location)
        if file is None:
            raise InvalidFileError(f"{graph.name}: its weights lie in {location!r}, which the pass did not write")
        (to / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to / location)


def _tensors(proto: Any) -> Iterable[Any]:
    for graph in graphs_of(proto.graph):
        yield from graph.initializer
        for node in graph.node:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def carry(source: Artifact, to: Path) -> None:
    """Copy the configuration and the tokenizer of a source that is a directory, where the result has none."""
    for file in carried(source.path) if source.path.is_dir() else ():
        target = to / file.relative_to(source.path)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def graphs(kind: str, source: Artifact, to: Path) -> dict[str, Any]:
    """Return the number of operators by type, before and after, where both are graphs."""
    found: dict[str, Any] = {}
    if source.format.startswith("onnx"):
        found["operators_before"] = operators(graph_file(source.path))
    if kind == "onnx":
        found["operators"] = operators(to / MODEL)
    return found


def operators(graph: Path) -> dict[str, int]:
    """Return the number of nodes of a graph by operator, subgraphs included; no weights are read."""
    counts: dict[str, int] = {}

    def count(nodes: Iterable[Any]) -> None:
        for node in nodes:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    count(inner.node)

    count(onnx().load(str(graph), load_external_data=False).graph.node)
    return dict(sorted(counts.items()))


def sizes(source: Artifact, to: Path) -> dict[str, float]:
    """Return the size of the result relative to the source, both with everything that belongs to them."""
    written = sum(
        file.stat().st_size for file in to.rglob("*") if file.is_file() and "work" not in file.relative_to(to).parts[:1]
    )
    return {"size_ratio": written / max(source.nbytes, 1)}


def refuse_bad_cosine(least: object) -> None:
    """Raise `UsageError` if a least cosine is not a number between -1 and 1."""
    if isinstance(least, bool) or not isinstance(least, int | float) or not -1 <= least <= 1:
        raise UsageError(f"least_cosine={least!r:.80}; choose a number between -1 and 1")


def refuse_unlike(measured: Mapping[str, float], least: float, name: str) -> None:
    """Raise `QualityGateError` if the measured cosine is below `least`."""
    cosine = measured.get("cosine", 1.0)
    if cosine < least:
        raise QualityGateError(
            f"{name}: the result's outputs have a cosine of {cosine:.4g} with the source's, below {least:g}: Olive "
            "saved wrong weights, or the options are too coarse; choose others, or allow it with least_cosine=-1"
        )


def open_result(path: Path, kind: str) -> Artifact:
    """Return a written result, opened; one in no format of edgekit's as an artifact without tensors."""
    if kind in ("onnx", "hf", "openvino"):
        try:
            return open_artifact(path)
        except MissingPluginError:  # of the format openvino
            pass

    def no_model() -> Any:
        raise UnsupportedModelError(f"{path}: Olive's {kind} is no format of edgekit's; use it with Olive")

    found = tuple(sorted(file for file in path.rglob("*") if file.is_file() and file.name != "edgekit.manifest.json"))
    manifest = Manifest.from_json((path / "edgekit.manifest.json").read_bytes(), path / "edgekit.manifest.json")
    return Artifact(path, f"olive-{kind}", found, {}, {}, no_model, lambda: None, manifest)


def make_manifest(source: Artifact, recipe: str, quality: Mapping[str, Any], notes: Mapping[str, str]) -> Manifest:
    """Return the manifest of a pass's result."""
    return Manifest(sources=digests(source.files), recipe=recipe, versions=_versions(), quality=quality, notes=notes)


def _versions() -> dict[str, str]:
    names = ("edgekit-core", "edgekit-olive", "olive-ai", "onnx", "onnxruntime", "numpy")
    return {name: _version(name) for name in names}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "0"


__all__ = [
    "carry",
    "copy_graph",
    "graphs",
    "inputs_of",
    "make_manifest",
    "one_of",
    "open_result",
    "operators",
    "read_samples",
    "refuse_bad_cosine",
    "refuse_unlike",
    "sizes",
]
