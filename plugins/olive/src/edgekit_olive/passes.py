"""Olive's passes as edgekit's: ``edgekit apply olive:NAME``.

A pass runs on a copy of the source, in a process of its own (`edgekit_olive.isolation`). Its result is computed with:
a pass that saves a graph that does not load, or that computes values that are not finite, raises an error instead of
leaving a broken model (Olive #2223), and the difference of the outputs is in the manifest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import MissingPluginError, UnsupportedModelError, UsageError
from edgekit.evaluation.samples import CONTEXT, Samples
from edgekit.files.atomic import AtomicDirectory, writing
from edgekit.files.foreign import read_object
from edgekit.files.guard import refuse_harm
from edgekit_olive import isolation
from edgekit_olive.catalogue import Entry, entries
from edgekit_olive.options import PROVIDERS
from edgekit_olive.results import (
    carry,
    copy_graph,
    graphs,
    make_manifest,
    one_of,
    open_result,
    read_samples,
    refuse_bad_cosine,
    refuse_unlike,
    sizes,
)
from edgekit_olive.writer import MODEL, OWNED

#: The file with what a pass recorded about a model beside its graph; a pass that follows reads it.
RECORD = "olive.json"
#: Kinds of devices that Olive distinguishes.
ACCELERATORS = ("cpu", "gpu", "npu")
#: The file that a directory of peft's has.
ADAPTER = "adapter_config.json"
_RECORD_LIMIT = 16 << 20
_MOST = 128
#: Relative size from which on a graph with the same operators counts as unchanged.
_SAME_SIZE = 0.98
_IR = {".xml": "openvino_model.xml", ".bin": "openvino_model.bin"}


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
        adapter: str | os.PathLike[str] | None = None,
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
            adapter: directory of a peft adapter that belongs to the model, for passes on Hugging Face directories.
            least_cosine: a result whose outputs have a lower cosine with the source's is refused; -1 for none.
            options: Olive's own of the pass; `edgekit_olive.catalogue` lists them.

        Returns:
            The result; of fine-tuning the adapter, in an artifact of the format ``olive-adapter``, which
            `edgekit.merge` merges. Its ``manifest.quality`` has ``output_error``, ``cosine`` and ``top1`` (see
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
        one_of("accelerator", accelerator, ACCELERATORS)
        one_of("provider", provider, PROVIDERS)
        job = {
            "pass": self.entry.name,
            "options": options,
            "accelerator": accelerator,
            "provider": PROVIDERS[provider],
            "adapter": self._adapter(adapter, source, to),
        }
        if self.entry.name == "ExtractAdapters" and options.get("make_inputs") is False:
            raise UsageError(f"{self.name}: make_inputs=false leaves a graph without weights, which cannot be read")
        obstacle = self.entry.obstacle()
        if obstacle:
            kind = MissingPluginError if "not installed" in obstacle else UnsupportedModelError
            raise kind(f"{self.name} cannot run here: {obstacle}")
        feeds = None if calibration is None else read_samples(source, calibration, samples, context)
        refuse_bad_cosine(least_cosine)
        return apply(source, to, job, feeds, self.name, least_cosine)

    def _adapter(self, given: str | os.PathLike[str] | None, source: Artifact, to: Path) -> str | None:
        """Return the directory of an adapter, checked."""
        if given is None:
            if self.entry.name == "MergeAdapterWeights":
                raise UsageError(f"{self.name} needs adapter=, a directory of peft's with {ADAPTER}")
            return None
        path = Path(given)
        if source.format != "hf":
            raise UsageError(f"{self.name}: adapter= belongs to a Hugging Face directory, this is {source.format}")
        if not (path / ADAPTER).is_file():
            raise UsageError(f"{self.name}: adapter={str(path)!r:.200} has no {ADAPTER}; give a directory of peft's")
        refuse_harm(to, [path])
        return str(path.resolve())


def apply(
    source: Artifact,
    to: Path,
    job: Mapping[str, Any],
    feeds: list[Any] | None,
    name: str,
    least_cosine: float,
    told: dict[str, Any] | None = None,
) -> Artifact:
    """Run a job of the worker on a copy of a model, and write its result as a directory with a manifest.

    Args:
        source: the model.
        to: the directory to write.
        job: the job without its paths; see `edgekit_olive.worker`.
        feeds: samples for it, or None.
        name: of what runs, for messages and the manifest.
        least_cosine: see `OlivePass.run`, which says what is raised, too.
        told: the worker's report is added to it.
    """
    directory = AtomicDirectory(to, owned=(*OWNED, RECORD, *_IR.values()))
    try:
        with writing(to):
            work = directory.path / "work"
            (work / "output").mkdir(parents=True)
            directory.reserve(3 * source.nbytes)
            copied = _copied(source, work / "source")
            told = {} if told is None else told
            told |= isolation.run({**job, **_paths(source, copied, work, feeds, job.get("adapter"))}, work, name)
            refuse_unlike(told.get("measured", {}), least_cosine, name)
            _assemble(told, source, directory.path, work)
            quality = {
                **told.get("measured", {}),
                **graphs(told["kind"], source, directory.path),
                **sizes(source, directory.path),
            }
            notes = _notes(told, name, copied, quality)
            shutil.rmtree(work)
        manifest = make_manifest(source, _recipe(name, job.get("options", {})), quality, notes)
        directory.write("edgekit.manifest.json", manifest.to_json().encode())
        directory.commit()
    finally:
        directory.close(keep=False)
    return open_result(to, told["kind"])


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


def _paths(source: Artifact, copied: Path, work: Path, feeds: list[Any] | None, adapter: str | None) -> dict[str, Any]:
    kind = "onnx" if source.format.startswith("onnx") else source.format
    folder = copied if copied.is_dir() else copied.parent
    record = read_object(folder, RECORD, _RECORD_LIMIT) or {}
    causal = any("ForCausalLM" in name for name in source.config.get("architectures") or ())
    if feeds is not None:
        arrays = {f"{number}/{name}": value for number, feed in enumerate(feeds) for name, value in feed.items()}
        np.savez(work / "samples.npz", **arrays)
    output = work / "output"
    model = {"kind": kind, "path": str(copied), "attributes": record.get("attributes"), "causal": causal}
    return {
        "model": {**model, "adapter": adapter},
        "output": str(output / MODEL if kind == "onnx" else output / "result"),
        "samples": str(work / "samples.npz") if feeds is not None else None,
    }


def _assemble(told: Mapping[str, Any], source: Artifact, to: Path, work: Path) -> None:
    """Copy the result into the directory to write, with the source's configuration and tokenizer."""
    paths = [Path(path) for path in told["paths"]]
    if not paths or not all(path.exists() and path.is_relative_to(work) for path in paths):
        raise UnsupportedModelError(
            f"the pass says that it wrote {', '.join(map(str, paths)) or 'nothing'}, which does not exist"
        )
    if told["kind"] == "onnx":
        copy_graph(paths[0], to, MODEL)
    elif told["kind"] == "composite":
        for path in paths:
            copy_graph(path, to, path.name)
    else:
        _copy_tree(paths[0], to, _IR if told["kind"] == "openvino" else {})
    for path in map(Path, told.get("weights", ())):
        shutil.copyfile(path, to / path.name)
    carry(source, to)
    record = told.get("attributes")
    if record:
        text = json.dumps(_portable(record, work), indent=1, sort_keys=True)
        (to / RECORD).write_text(text + "\n", "utf-8")


def _portable(value: Any, work: Path) -> Any:
    """Return a record without what names the directory of the run."""
    if isinstance(value, Mapping):
        return {key: _portable(each, work) for key, each in value.items() if str(work) not in str(each)}
    return value


def _copy_tree(root: Path, to: Path, names: Mapping[str, str]) -> None:
    folder = root if root.is_dir() else root.parent
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "edgekit.manifest.json":
            target = to / names.get(file.suffix, file.relative_to(folder).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _notes(told: Mapping[str, Any], name: str, copied: Path, found: Mapping[str, Any]) -> dict[str, str]:
    notes = {}
    same = (
        "operators" in found
        and found["operators"] == found.get("operators_before")
        and found["size_ratio"] > _SAME_SIZE
    )
    if same and "Quant" in name:
        notes["unchanged"] = f"{name} changed no operator, and the size is as it was" + (
            "; the products of this graph are FusedMatMul, which Olive's tools do not look for: write the model in the "
            "format onnx-portable first"
            if "FusedMatMul" in found["operators"]
            else ""
        )
    if "uncompared" in told:
        notes["uncompared"] = f"{name}: the outputs were not compared with the source's: {told['uncompared']}"
    if str(copied) in told["paths"]:
        notes["unchanged"] = f"{name} left the graph and the weights as they were" + (
            f"; what it recorded is in {RECORD}" if told.get("attributes") else ""
        )
    return notes


def _recipe(name: str, options: Mapping[str, Any]) -> str:
    words = (f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(options.items()))
    return " ".join([name, *words])


def __getattr__(name: str) -> OlivePass:
    """Return a pass by Olive's name."""
    if name in entries():
        return OlivePass(entries()[name])
    raise AttributeError(name)


__all__ = ["ACCELERATORS", "ADAPTER", "RECORD", "OlivePass", "apply"]
