"""The formats ``onnx`` and ``onnx-portable``: a directory with ``model.onnx``, its weights, and a tokenizer.

``onnx`` reads every ONNX file, and writes decoders with ONNX Runtime's own operators; ``onnx-portable`` writes them
with standard operators only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import attrs

from edgekit.architectures import Model, check_tensors
from edgekit.architectures.hf import config_from_hf, hf_names
from edgekit.artifact import Artifact, Layout
from edgekit.errors import EdgekitError, UnsupportedModelError
from edgekit.files.foreign import member, read_object
from edgekit.files.reader import Reader, read_start
from edgekit.formats import carried
from edgekit.manifest import Manifest, read_manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.tokenizer import from_hf_directory
from edgekit_olive import genai
from edgekit_olive.bridge import carried as converted
from edgekit_olive.elements import storable
from edgekit_olive.graph import DIALECT, refuse_lacking
from edgekit_olive.reading import parse, tensors
from edgekit_olive.sizes import OnnxSizes
from edgekit_olive.writer import MODEL, OnnxWriter, graph_file

CONFIG = "config.json"
CONFIG_LIMIT = 4 << 20
#: The first byte of a model: the tag of the field ``ir_version``.
_MAGIC = b"\x08"
#: Number of bytes at a graph's end that are searched for its metadata.
_TAIL = 512


class OnnxFormat:
    """Reads ONNX files and directories; writes decoders for ONNX Runtime."""

    name = "onnx"
    #: The convention whose precisions may be written without its prefix for this format.
    conventions = ("onnx",)
    fused: ClassVar[bool] = True

    def matches(self, path: Path) -> bool:
        """Return whether the path is a directory with ``model.onnx``, or an .onnx file with the right first byte."""
        if path.is_dir():
            return (path / MODEL).is_file()
        return path.suffix == ".onnx" and read_start(path, 1) == _MAGIC

    def open(self, path: Path) -> Artifact:
        """Read the graph, and check its constants, without reading values.

        Raises:
            MissingFileError: the graph, or a file with its weights, does not exist.
            InvalidFileError: a file is malformed; names the file and the constant.
            UnsupportedModelError: the installed onnx does not support an opset or a type.
        """
        directory = path if path.is_dir() else path.parent
        graph = graph_file(path)
        parsed = parse(graph)
        whole = graph.name == MODEL
        config = (read_object(directory, CONFIG, CONFIG_LIMIT) if whole else None) or {}
        found = tensors(parsed)
        return Artifact(
            path=path,
            format=self.name,
            files=(*parsed.files, graph, *(_beside(directory) if whole else ())),
            config=config,
            tensors=found,
            load_model=cache(lambda: _model(config, found, path)),
            load_tokenizer=cache(lambda: from_hf_directory(directory) if whole else None),
            manifest=read_manifest(directory if whole else path),
        )

    def layout(self, source: Artifact) -> Layout:
        """Return the source's tensors under Hugging Face's names, with canonical values.

        Encoded tensors keep their codes if MatMulNBits can hold the same values; others are decoded.

        Raises:
            UnsupportedModelError: the model family is unsupported.
        """
        model = source.model
        refuse_lacking(model.config)
        slots = (_slot(name, role, model.tensors[role], self.fused) for role, name in hf_names(model.config).items())
        return Layout(tuple(slots), source, model)

    def sizes(self, layout: Layout) -> OnnxSizes:
        """Return the sizes of tensors in an ONNX directory of that layout."""
        return OnnxSizes(layout, self.fused)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> OnnxWriter:
        """Start writing a directory, or resume an interrupted run.

        Raises:
            MissingPluginError: onnx is not installed.
            UnsupportedModelError: a graph cannot store a precision of the plan.
            ResourceError: the target cannot be written.
            LockedError: another process writes it.
            UsageError: the target exists and is not the writer's to replace.
        """
        return OnnxWriter(path, layout, plan, manifest, fused=self.fused)


class PortableFormat(OnnxFormat):
    """Writes decoders with standard operators only."""

    name = "onnx-portable"
    fused = False

    def matches(self, path: Path) -> bool:
        """Return whether this format wrote the directory, according to the metadata at the graph's end."""
        graph = path / MODEL
        if not path.is_dir() or not graph.is_file():
            return False
        try:
            reader = Reader(graph)
            start = max(0, reader.size - _TAIL)
            end = reader.read_bytes(start, reader.size - start)
        except EdgekitError:
            return False  # the format `onnx` reports the error
        return DIALECT.encode() in end and b"portable" in end


def _beside(directory: Path) -> tuple[Path, ...]:
    """Return a directory's files besides graph and weights."""
    told = member(directory, genai.CONFIG)
    return (*carried(directory), *(() if told is None else (told,)))


def _slot(name: str, role: str, tensor: AnyTensor, fused: bool) -> Slot:
    stored = _stored(tensor, fused)
    return Slot(name, role, stored, _kept(stored))


def _stored(tensor: AnyTensor, fused: bool) -> AnyTensor:
    """Return the tensor in a precision of ONNX Runtime's with the same values; if there is none, unchanged."""
    if not isinstance(tensor, EncodedTensor) or storable(tensor.precision):
        return tensor
    return converted(tensor, fused) or tensor


def _kept(tensor: AnyTensor) -> Precision:
    """Return the precision of a tensor that is not quantized: its own, or F32 for vectors and wider floats."""
    if isinstance(tensor, EncodedTensor):
        return tensor.precision if storable(tensor.precision) else find_precision("float:F32")
    kind = {"float16": "F16", "bfloat16": "BF16"}.get(tensor.dtype, "F32") if len(tensor.shape) > 1 else "F32"
    return find_precision(f"float:{kind}")


def _model(config: Mapping[str, Any], found: Mapping[str, AnyTensor], path: Path) -> Model:
    """Return the model of a directory with canonical names, if its constants have the names that edgekit writes."""
    if not config:
        raise UnsupportedModelError(
            f"{path}: an ONNX file without config.json does not say its family; it runs as it is"
        )
    parsed = config_from_hf(config, str(path))
    parsed = attrs.evolve(parsed, tied="lm_head.weight" not in found)
    names = hf_names(parsed)
    missing = [name for name in names.values() if name not in found]
    if missing:
        raise UnsupportedModelError(
            f"{path}: its graph has no constant {missing[0]} ({len(missing)} of {len(names)} are missing), so another "
            "program wrote it; it runs as it is, and to change it convert it from its original files"
        )
    view = {role: found[name] for role, name in names.items()}
    check_tensors(parsed, view, str(path), names)
    return Model(parsed, view)


__all__ = ["OnnxFormat", "PortableFormat"]
