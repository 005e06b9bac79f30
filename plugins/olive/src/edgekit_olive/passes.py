"""Olive's passes as edgekit's: ``edgekit apply olive:NAME``.

A pass runs on a copy of the source, in a process of its own (`edgekit_olive.isolation`). Its result is computed with:
a pass that saves a graph that does not load, or that computes values that are not finite, raises an error instead of
leaving a broken model (Olive #2223), and the difference of the outputs is in the manifest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import (
    InvalidFileError,
    MissingPluginError,
    QualityGateError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.evaluation.samples import CONTEXT, Input, Samples, read
from edgekit.files.atomic import AtomicDirectory, writing
from edgekit.files.digests import sha256
from edgekit.files.foreign import member, read_object
from edgekit.formats import carried
from edgekit.manifest import Manifest
from edgekit.pipeline import open_artifact
from edgekit_olive import isolation
from edgekit_olive.catalogue import Entry, entries
from edgekit_olive.library import onnx
from edgekit_olive.options import PROVIDERS
from edgekit_olive.reading import parse
from edgekit_olive.writer import MODEL, OWNED

#: The file with what a pass recorded about a model beside its graph; a pass that follows reads it.
RECORD = "olive.json"
#: Kinds of devices that Olive distinguishes.
ACCELERATORS = ("cpu", "gpu", "npu")
_RECORD_LIMIT = 16 << 20
_MOST = 128
_IR = {".xml": "openvino_model.xml", ".bin": "openvino_model.bin"}
_HF_INPUTS = tuple(Input(name, (None, None), "int64") for name in ("input_ids", "attention_mask"))


@attrs.frozen
class OlivePass:
    """One of Olive's passes; see `edgekit.pipeline.passes.Pass`.

    Attributes:
        entry: what is known about it.
    """

    entry: Entry

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        return f"olive:{self.entry.name}"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        calibration: Samples | None = None,
        context: int = CONTEXT,
        samples: int = _MOST,
        accelerator: str = "cpu",
        provider: str = "cpu",
        least_cosine: float = 0.5,
        **options: Any,
    ) -> Artifact:
        """Write the directory that the pass makes of a model.

        Args:
            source: an ONNX model, a Hugging Face directory or an IR, as the pass takes them.
            to: the directory to write.
            calibration: samples of the input, for passes that calibrate or train; see `edgekit.evaluation.samples`.
            context: number of tokens in a sample, if `calibration` is a text.
            samples: largest number of samples.
            accelerator: kind of the device that the model is for: ``cpu``, ``gpu`` or ``npu``.
            provider: short name of the execution provider that it is for: ``cpu``, ``cuda`` …
            least_cosine: a result whose outputs have a lower cosine with the source's is refused; -1 for none.
            options: Olive's own of the pass; `edgekit_olive.catalogue` lists them.

        Returns:
            The result. Its ``manifest.quality`` has ``output_error``, ``cosine`` and ``top1`` (see
            `edgekit.evaluation.outputs`), ``size_ratio``, and for graphs ``operators_before`` and ``operators``, by
            type. Where the outputs cannot be compared, a note says why.

        Raises:
            UsageError: an option is unknown, missing or of a wrong type, or a sample is invalid.
            MissingPluginError: Olive, or a module that the pass needs, is not installed.
            UnsupportedModelError: the pass cannot run here, or not on this model.
            PluginError: the process of the pass ended without a result.
            NonFiniteError: the result computes values that are not finite.
            QualityGateError: the cosine is below `least_cosine`.
            ResourceError: the target cannot be written; it is left as it was.
        """
        self.entry.check(options, calibration is not None)
        _one_of("accelerator", accelerator, ACCELERATORS)
        _one_of("provider", provider, PROVIDERS)
        obstacle = self.entry.obstacle()
        if obstacle:
            kind = MissingPluginError if "not installed" in obstacle else UnsupportedModelError
            raise kind(f"{self.name} cannot run here: {obstacle}")
        feeds = None if calibration is None else _feeds(source, calibration, samples, context)
        if isinstance(least_cosine, bool) or not isinstance(least_cosine, int | float) or not -1 <= least_cosine <= 1:
            raise UsageError(f"least_cosine={least_cosine!r:.80}; choose a number between -1 and 1")
        job = {
            "pass": self.entry.name,
            "options": options,
            "accelerator": accelerator,
            "provider": PROVIDERS[provider],
        }
        return apply(source, to, job, feeds, self.name, least_cosine)


def apply(
    source: Artifact, to: Path, job: Mapping[str, Any], feeds: list[Any] | None, name: str, least_cosine: float
) -> Artifact:
    """Run a job of the worker on a copy of a model, and write its result as a directory with a manifest.

    Args:
        source: the model.
        to: the directory to write.
        job: the job without its paths; see `edgekit_olive.worker`.
        feeds: samples for it, or None.
        name: of what runs, for messages and the manifest.
        least_cosine: see `OlivePass.run`, which says what is raised, too.
    """
    directory = AtomicDirectory(to, owned=(*OWNED, RECORD, *_IR.values()))
    try:
        with writing(to):
            work = directory.path / "work"
            (work / "output").mkdir(parents=True)
            directory.reserve(3 * source.nbytes)
            copied = _copied(source, work / "source")
            told = isolation.run({**job, **_paths(source, copied, work, feeds)}, work, name)
            _refuse_unlike(told.get("measured", {}), least_cosine, name)
            _assemble(told, source, directory.path, work)
            notes = _notes(told, name, copied)
            quality = {
                **told.get("measured", {}),
                **_graphs(told, source, directory.path),
                **_sizes(source, directory.path),
            }
            shutil.rmtree(work)
        manifest = Manifest(
            sources={file.name: sha256(file) for file in source.files},
            recipe=_recipe(name, job.get("options", {})),
            versions=_versions(),
            quality=quality,
            notes=notes,
        )
        directory.write("edgekit.manifest.json", manifest.to_json().encode())
        directory.commit()
    finally:
        directory.close(keep=False)
    return open_result(to, told["kind"])


def _refuse_unlike(measured: Mapping[str, float], least: float, name: str) -> None:
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


def _one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}={value!r:.80}; choose one of {', '.join(allowed)}")


def _copied(source: Artifact, to: Path) -> Path:
    """Copy a model, because Olive makes hard links to its input; return the path of the graph or the directory."""
    root = source.path if source.path.is_dir() else source.path.parent
    for file in (*source.files, root / RECORD):
        if file.is_file():
            target = to / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    if source.format.startswith("onnx"):
        return to / (MODEL if source.path.is_dir() else source.path.name)
    return to


def _paths(source: Artifact, copied: Path, work: Path, feeds: list[Any] | None) -> dict[str, Any]:
    kind = "onnx" if source.format.startswith("onnx") else source.format
    folder = copied if copied.is_dir() else copied.parent
    record = read_object(folder, RECORD, _RECORD_LIMIT) or {}
    causal = any("ForCausalLM" in name for name in source.config.get("architectures") or ())
    if feeds is not None:
        arrays = {f"{number}/{name}": value for number, feed in enumerate(feeds) for name, value in feed.items()}
        np.savez(work / "samples.npz", **arrays)
    output = work / "output"
    return {
        "model": {"kind": kind, "path": str(copied), "attributes": record.get("attributes"), "causal": causal},
        "output": str(output / MODEL if kind == "onnx" else output / "result"),
        "samples": str(work / "samples.npz") if feeds is not None else None,
    }


def _feeds(source: Artifact, calibration: Samples, most: int, context: int) -> list[Any]:
    if source.format == "hf":
        return read(calibration, _HF_INPUTS, most=most, source=source, context=context)
    graph = source.path / MODEL if source.path.is_dir() else source.path
    inputs = inputs_of(parse(graph).proto)
    text = isinstance(calibration, str | os.PathLike) and Path(calibration).suffix != ".npz"
    states = {each.name: _empty(each) for each in inputs if text and each.name.startswith("past")}
    given = tuple(each for each in inputs if each.name not in states)
    return [feed | states for feed in read(calibration, given, most=most, source=source, context=context)]


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


def _assemble(told: Mapping[str, Any], source: Artifact, to: Path, work: Path) -> None:
    """Copy the result into the directory to write, with the source's configuration and tokenizer."""
    paths = [Path(path) for path in told["paths"]]
    if not paths or not all(path.exists() and path.is_relative_to(work) for path in paths):
        raise UnsupportedModelError(
            f"the pass says that it wrote {', '.join(map(str, paths)) or 'nothing'}, which does not exist"
        )
    if told["kind"] == "onnx":
        _copy_graph(paths[0], to, MODEL)
    elif told["kind"] == "composite":
        for path in paths:
            _copy_graph(path, to, path.name)
    else:
        _copy_tree(paths[0], to, _IR if told["kind"] == "openvino" else {})
    if source.path.is_dir():
        for file in carried(source.path):
            target = to / file.relative_to(source.path)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
    record = told.get("attributes")
    if record:
        text = json.dumps(_portable(record, work), indent=1, sort_keys=True)
        (to / RECORD).write_text(text + "\n", "utf-8")


def _portable(value: Any, work: Path) -> Any:
    """Return a record without what names the directory of the run."""
    if isinstance(value, Mapping):
        return {key: _portable(each, work) for key, each in value.items() if str(work) not in str(each)}
    return value


def _copy_graph(graph: Path, to: Path, name: str) -> None:
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
    yield from proto.graph.initializer
    for node in proto.graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _copy_tree(root: Path, to: Path, names: Mapping[str, str]) -> None:
    folder = root if root.is_dir() else root.parent
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "edgekit.manifest.json":
            target = to / names.get(file.suffix, file.relative_to(folder).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _notes(told: Mapping[str, Any], name: str, copied: Path) -> dict[str, str]:
    notes = {}
    if "uncompared" in told:
        notes["uncompared"] = f"{name}: the outputs were not compared with the source's: {told['uncompared']}"
    if str(copied) in told["paths"]:
        notes["unchanged"] = f"{name} left the graph and the weights as they were" + (
            f"; what it recorded is in {RECORD}" if told.get("attributes") else ""
        )
    return notes


def _graphs(told: Mapping[str, Any], source: Artifact, to: Path) -> dict[str, Any]:
    """Return the number of operators by type, before and after, where both are graphs."""
    found: dict[str, Any] = {}
    if source.format.startswith("onnx"):
        found["operators_before"] = operators(source.path / MODEL if source.path.is_dir() else source.path)
    if told["kind"] == "onnx":
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


def _sizes(source: Artifact, to: Path) -> dict[str, float]:
    """Return the size of the result relative to the source, both with everything that belongs to them."""
    written = sum(
        file.stat().st_size for file in to.rglob("*") if file.is_file() and "work" not in file.relative_to(to).parts[:1]
    )
    return {"size_ratio": written / max(source.nbytes, 1)}


def _recipe(name: str, options: Mapping[str, Any]) -> str:
    words = (f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(options.items()))
    return " ".join([name, *words])


def _versions() -> dict[str, str]:
    names = ("edgekit-core", "edgekit-olive", "olive-ai", "onnx", "onnxruntime", "numpy")
    return {name: _version(name) for name in names}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "0"


def __getattr__(name: str) -> OlivePass:
    """Return a pass by Olive's name."""
    if name in entries():
        return OlivePass(entries()[name])
    raise AttributeError(name)


__all__ = ["ACCELERATORS", "RECORD", "OlivePass", "apply", "inputs_of", "open_result", "operators"]
