"""The format ``openvino``: a directory with ``openvino_model.xml`` and ``.bin``, a configuration and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from edgekit.architectures import Model, check_tensors
from edgekit.architectures.hf import config_from_hf, hf_names
from edgekit.artifact import Artifact, Layout, Writer
from edgekit.errors import UnsupportedModelError
from edgekit.files.foreign import member, read_object
from edgekit.files.reader import read_start
from edgekit.formats import carried, with_modules
from edgekit.manifest import Manifest, read_manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.tokenizer import Tokenizer, from_hf_directory
from edgekit_openvino import ir, weights
from edgekit_openvino.bridge import carried_over
from edgekit_openvino.elements import storable
from edgekit_openvino.graph import refuse_lacking
from edgekit_openvino.tokenizer import MODELS

if TYPE_CHECKING:
    from edgekit_openvino.sizes import OpenVinoSizes

XML = "openvino_model.xml"
CONFIG = "config.json"
CONFIG_LIMIT = 4 << 20
#: Suffixes of files that OpenVINO converts as a whole.
WHOLE = (".onnx",)
#: The start of an IR's XML, after a declaration and comments.
_HEAD = 4096


class OpenVinoFormat:
    """Reads and writes OpenVINO IR."""

    name = "openvino"
    #: The convention whose precisions may be written without its prefix for this format.
    conventions = ("openvino",)

    def matches(self, path: Path) -> bool:
        """Return whether the path is a directory with ``openvino_model.xml``, or an .xml whose root is a ``net``."""
        if path.is_dir():
            return (path / XML).is_file()
        return path.suffix == ".xml" and b"<net" in read_start(path, _HEAD)

    def open(self, path: Path) -> Artifact:
        """Read the graph, and check that the .bin belongs to it, without reading values.

        Raises:
            MissingFileError: the .xml or its .bin does not exist.
            InvalidFileError: a file is malformed; names the file, the line and the constant.
            UnsupportedModelError: the installed openvino does not support an operation or an element type.
        """
        directory = path if path.is_dir() else path.parent
        xml = path / XML if path.is_dir() else path
        for name in (xml.name, xml.with_suffix(".bin").name):
            member(directory, name)  # links must not lead out of the directory
        graph = ir.read(xml)
        written_here = xml.name == XML
        config = (read_object(directory, CONFIG, CONFIG_LIMIT) if written_here else None) or {}
        tensors = weights.tensors(graph)
        return Artifact(
            path=path,
            format=self.name,
            files=(xml.with_suffix(".bin"), xml, *(_beside(directory) if written_here else ()))[
                0 if graph.constants else 1 :
            ],
            config=config,
            tensors=tensors,
            load_model=cache(lambda: _model(config, tensors, directory)),
            load_tokenizer=cache(lambda: _tokenizer(directory) if written_here else None),
            manifest=read_manifest(directory) if written_here else None,
        )

    def layout(self, source: Artifact) -> Layout:
        """Return the source's tensors under Hugging Face's names, with canonical values.

        An ONNX file has no slots, since OpenVINO converts it as a whole. Encoded tensors keep their codes if an IR can
        hold the same values; others are decoded.

        Raises:
            UnsupportedModelError: the model family is unsupported.
        """
        if source.path.suffix in WHOLE:
            return Layout((), source, None)
        model = source.model
        refuse_lacking(model.config)
        slots = (_slot(name, role, model.tensors[role]) for role, name in hf_names(model.config).items())
        return Layout(tuple(slots), source, model)

    def sizes(self, layout: Layout) -> OpenVinoSizes:
        """Return the sizes of tensors in an IR of that layout.

        Raises:
            MissingPluginError: openvino, which writes the graph, is not installed.
            UnsupportedModelError: the source is an ONNX file, which OpenVINO converts as a whole.
        """
        from edgekit_openvino.sizes import OpenVinoSizes

        if layout.model is None:
            raise UnsupportedModelError(
                f"{layout.source.path}: OpenVINO converts it as a whole, so its tensors have no precisions to choose"
            )
        return OpenVinoSizes(layout)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> Writer:
        """Start writing a directory, or resume an interrupted run.

        Raises:
            MissingPluginError: openvino, which writes the graph, is not installed.
            UnsupportedModelError: an IR cannot store a precision of the plan.
            ResourceError: the target cannot be written.
            LockedError: another process writes it.
            UsageError: the target exists and is not the writer's to replace.
        """
        if layout.source.path.suffix in WHOLE:
            from edgekit_openvino.convert import WholeWriter

            return WholeWriter(path, layout, plan, manifest)
        from edgekit_openvino.writer import OpenVinoWriter

        return OpenVinoWriter(path, layout, plan, manifest)


def _slot(name: str, role: str, tensor: AnyTensor) -> Slot:
    stored = carried_over(tensor)
    return Slot(name, role, stored, _kept(stored))


def _kept(tensor: AnyTensor) -> Precision:
    """Return the precision of a tensor that is not quantized: its own, or F32 for vectors and wider floats."""
    if isinstance(tensor, EncodedTensor):
        return tensor.precision if storable(tensor.precision) else find_precision("float:F32")
    kind = {"float16": "F16", "bfloat16": "BF16"}.get(tensor.dtype, "F32") if len(tensor.shape) > 1 else "F32"
    return find_precision(f"float:{kind}")


def _beside(directory: Path) -> tuple[Path, ...]:
    tokenizers = (member(directory, name) for name in MODELS)
    return (*carried(directory), *(path for path in tokenizers if path is not None))


def _model(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor], directory: Path) -> Model:
    """Return the model of a directory with canonical names, if its constants have the names that edgekit writes."""
    if not config:
        raise UnsupportedModelError(f"{directory}: an IR without config.json does not say its family; it runs as it is")
    parsed = config_from_hf(config, str(directory))
    parsed = attrs.evolve(parsed, tied="lm_head.weight" not in tensors)
    names = hf_names(parsed)
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise UnsupportedModelError(
            f"{directory}: its graph has no constant {missing[0]} ({len(missing)} of {len(names)} are missing), so "
            "another program wrote it; it runs as it is, and to change it convert it from its original files"
        )
    others = [name for name, tensor in tensors.items() if name not in set(names.values()) and len(tensor.shape) > 1]
    if others:
        raise UnsupportedModelError(
            f"{directory}: its graph has the matrix {others[0]}, which {parsed.family} does not have (NNCF's LoRA "
            "correction adds such); it runs as it is, and to change it convert it from its original files"
        )
    view = {role: tensors[name] for role, name in names.items()}
    check_tensors(parsed, view, str(directory), names)
    return with_modules(Model(parsed, view), directory)


def _tokenizer(directory: Path) -> Tokenizer | None:
    return from_hf_directory(directory)


__all__ = ["OpenVinoFormat"]
