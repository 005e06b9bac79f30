"""The formats ``onnx`` and ``onnx-portable``: a directory with ``model.onnx``, its weights, and the tokenizer beside.

``onnx`` reads every ONNX file, and writes decoders with ONNX Runtime's own operators; ``onnx-portable`` writes them
with standard operators alone.
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
from edgekit.bridges import first_exact
from edgekit.errors import EdgekitError, UnsupportedModelError
from edgekit.files.foreign import read_object
from edgekit.files.reader import Reader, read_start
from edgekit.formats import carried
from edgekit.manifest import Manifest, read_manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.tokenizer import from_hf_directory
from edgekit_olive.bridge import candidates
from edgekit_olive.elements import storable
from edgekit_olive.graph import DIALECT, refuse_lacking
from edgekit_olive.reading import parse, tensors
from edgekit_olive.sizes import OnnxSizes
from edgekit_olive.writer import MODEL, OnnxWriter

CONFIG = "config.json"
CONFIG_LIMIT = 4 << 20
#: How a model begins: the field ``ir_version``, whose number and kind are one byte.
_MAGIC = b"\x08"
#: How much of a graph's end is looked at for its metadata.
_TAIL = 512


class OnnxFormat:
    """Reads ONNX files and directories; writes decoders for ONNX Runtime."""

    name = "onnx"
    #: Whose precisions have short names here.
    conventions = ("onnx",)
    fused: ClassVar[bool] = True

    def matches(self, path: Path) -> bool:
        """A directory with ``model.onnx``, or an .onnx file that begins as one."""
        if path.is_dir():
            return (path / MODEL).is_file()
        return path.suffix == ".onnx" and read_start(path, 1) == _MAGIC

    def open(self, path: Path) -> Artifact:
        """Read the graph, and check what it says of its weights; no values.

        Raises:
            MissingFileError: the graph, or a file with its weights, is not there.
            InvalidFileError: malformed; names the file and the constant.
            UnsupportedModelError: an opset or a type that the installed onnx does not know.
        """
        directory = path if path.is_dir() else path.parent
        graph = path / MODEL if path.is_dir() else path
        parsed = parse(graph)
        whole = graph.name == MODEL
        config = (read_object(directory, CONFIG, CONFIG_LIMIT) if whole else None) or {}
        found = tensors(parsed)
        return Artifact(
            path=path,
            format=self.name,
            files=(*parsed.files, graph, *(carried(directory) if whole else ())),
            config=config,
            tensors=found,
            load_model=cache(lambda: _model(config, found, path)),
            load_tokenizer=cache(lambda: from_hf_directory(directory) if whole else None),
            manifest=read_manifest(directory if whole else path),
        )

    def layout(self, source: Artifact) -> Layout:
        """A decoder of the source's model, tensors under Hugging Face's names, with canonical values.

        A source whose tensors are encoded keeps their codes where MatMulNBits can hold them unchanged; others are
        decoded.

        Raises:
            UnsupportedModelError: an unsupported model family.
        """
        model = source.model
        refuse_lacking(model.config)
        slots = (_slot(name, role, model.tensors[role]) for role, name in hf_names(model.config).items())
        return Layout(tuple(slots), source, model)

    def sizes(self, layout: Layout) -> OnnxSizes:
        """What the tensors take in a directory of that layout."""
        return OnnxSizes(layout, self.fused)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> OnnxWriter:
        """Begin, or resume, a directory.

        Raises:
            MissingPluginError: onnx is not installed.
            UnsupportedModelError: the plan has precisions that a graph does not hold.
            ResourceError, LockedError, UsageError: about the target.
        """
        return OnnxWriter(path, layout, plan, manifest, fused=self.fused)


class PortableFormat(OnnxFormat):
    """Writes decoders with standard operators alone."""

    name = "onnx-portable"
    fused = False

    def matches(self, path: Path) -> bool:
        """A directory that this format wrote: the graph's metadata, at its end, says so."""
        graph = path / MODEL
        if not path.is_dir() or not graph.is_file():
            return False
        try:
            reader = Reader(graph)
            start = max(0, reader.size - _TAIL)
            end = reader.read_bytes(start, reader.size - start)
        except EdgekitError:
            return False  # the format `onnx` says what is wrong
        return DIALECT.encode() in end and b"portable" in end


def _slot(name: str, role: str, tensor: AnyTensor) -> Slot:
    stored = _stored(tensor)
    return Slot(name, role, stored, _kept(stored))


def _stored(tensor: AnyTensor) -> AnyTensor:
    """The tensor in a precision that a graph holds, its own or one of the same values; or as it is, to be decoded."""
    if not isinstance(tensor, EncodedTensor) or storable(tensor.precision):
        return tensor
    return first_exact(tensor, candidates(tensor)) or tensor


def _kept(tensor: AnyTensor) -> Precision:
    """What a tensor that is not quantized is stored in: what it has, F32 for vectors and for wider floats."""
    if isinstance(tensor, EncodedTensor):
        return tensor.precision if storable(tensor.precision) else find_precision("float:F32")
    kind = {"float16": "F16", "bfloat16": "BF16"}.get(tensor.dtype, "F32") if len(tensor.shape) > 1 else "F32"
    return find_precision(f"float:{kind}")


def _model(config: Mapping[str, Any], found: Mapping[str, AnyTensor], path: Path) -> Model:
    """The family-neutral view of a directory whose constants have the names that edgekit gives them."""
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
