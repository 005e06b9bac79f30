"""The models that passes work on: an IR or an ONNX file as its library's own object, and the way back to disk."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingPluginError, UnsupportedModelError, UsageError
from edgekit.files.atomic import AtomicDirectory, AtomicFile, writing
from edgekit.files.digests import sha256
from edgekit.files.memory import refuse_shortage
from edgekit.manifest import Manifest, manifest_path
from edgekit.pipeline import open_artifact
from edgekit.pipeline.passes import unread
from edgekit_openvino.library import core, last_line, openvino
from edgekit_openvino.quiet import quiet
from edgekit_openvino.samples import Input, inputs_of
from edgekit_openvino.writer import BIN, OWNED, XML

#: protobuf's limit; larger ONNX models keep their weights outside.
_ONNX_LIMIT = (1 << 31) - 1
#: What distinguishes a name that the library made up: its kind and a number that depends on what was made before.
_MADE_UP = re.compile(r"[A-Za-z0-9]+_\d+")


def xml_of(source: Artifact) -> Path:
    """The .xml of an artifact of the format ``openvino``."""
    return source.path / XML if source.path.is_dir() else source.path


def read_ir(source: Artifact) -> Any:
    """An artifact as an `openvino.Model`, values mapped from the file.

    Raises:
        InvalidFileError: the library does not read it.
    """
    return read_file(xml_of(source))


def read_file(path: Path) -> Any:
    """An .xml or .onnx file as an `openvino.Model`."""
    try:
        return core().read_model(str(path))
    except RuntimeError as error:
        refuse_shortage(error, f"{path}: reading it with OpenVINO")
        raise InvalidFileError(f"{path}: OpenVINO cannot read it ({last_line(error)}); convert it again") from error


def read_onnx(path: Path) -> Any:
    """An ONNX file as an `onnx.ModelProto`, weights beside it included.

    Raises:
        MissingPluginError: onnx is not installed.
        InvalidFileError: it is none.
    """
    onnx = library("onnx")
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's own classes
        refuse_shortage(error, f"{path}: reading it with onnx", path.stat().st_size)
        raise InvalidFileError(f"{path}: no ONNX model ({last_line(error)}); export it again") from error


def library(name: str) -> Any:
    """An optional package.

    Raises:
        MissingPluginError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        refuse_shortage(error, f"importing {name}")
        raise MissingPluginError(f"this needs {name}, which is not installed; pip install {name}") from error


def onnx_inputs(model: Any) -> tuple[Input, ...]:
    """The inputs of an `onnx.ModelProto` that no initializer fills."""
    weights = {each.name for each in model.graph.initializer}
    return tuple(_onnx_input(each) for each in model.graph.input if each.name not in weights)


def _onnx_input(each: Any) -> Input:
    tensor = each.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    dtype = library("onnx").helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return Input(each.name, shape if tensor.HasField("shape") else None, np.dtype(dtype).name)


def as_openvino(model: Any) -> Any:
    """An `onnx.ModelProto`, or an `openvino.Model` as it is, as the latter."""
    if isinstance(model, openvino().Model):
        return model
    return core().read_model(model.SerializeToString())


def inputs(model: Any) -> tuple[Input, ...]:
    """The inputs of a model of either library."""
    return inputs_of(model) if isinstance(model, openvino().Model) else onnx_inputs(model)


def quantizers(model: Any) -> int:
    """How many operations round a model's values to a grid while it runs."""
    if isinstance(model, openvino().Model):
        return sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


def weight_bytes(model: Any) -> int:
    """Bytes of a model's constants."""
    if isinstance(model, openvino().Model):
        return sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")
    return sum(each.ByteSize() for each in model.graph.initializer)


def op_names(model: Any) -> frozenset[str]:
    """The names of an `openvino.Model`'s operations; ONNX names nothing by itself."""
    return (
        frozenset(op.get_friendly_name() for op in model.get_ops())
        if isinstance(model, openvino().Model)
        else frozenset()
    )


def rename_new(model: Any, known: frozenset[str]) -> None:
    """Give operations that were added, and were called by a running number, names that depend on the model alone."""
    if not isinstance(model, openvino().Model):
        return
    number = 0
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name not in known and _MADE_UP.fullmatch(name):
            op.set_friendly_name(f"added_{op.get_type_name()}_{number}")
            number += 1


def low_bit(model: Any) -> dict[str, int]:
    """How many constants of two dimensions or more a model has in each element type below 16 bits."""
    counts: dict[str, int] = {}
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) > 1:
            kind = op.get_output_element_type(0)
            if kind.bitwidth < 16 and not op.get_friendly_name().endswith(("/zero_point", "/scale")):
                counts[kind.get_type_name()] = counts.get(kind.get_type_name(), 0) + 1
    return dict(sorted(counts.items()))


Finish = Callable[[Path], Mapping[str, Any]]
"""Called with the .xml or .onnx that was written, before it shows: gives the manifest's ``quality``."""


def write_ir(model: Any, source: Artifact | None, to: Path, recipe: str, finish: Finish) -> Artifact:
    """Write a directory: the IR, and the source's configuration and tokenizer.

    Raises:
        UsageError: the target is a file, or holds files of others.
        ResourceError, LockedError: about the target. Nothing half-written is left behind.
    """
    if to.suffix == ".xml":
        raise UsageError(f"{to}: name a directory; it gets {XML} and {BIN}")
    directory = AtomicDirectory(to, owned=OWNED)
    try:
        with writing(to), quiet():
            openvino().save_model(model, str(directory.path / XML), compress_to_fp16=False)
            for name, file in _companions(source) if source else ():
                directory.write(name, file.read_bytes())
        manifest = make_manifest(source, recipe, finish(directory.path / XML))
        directory.write(manifest_path(Path("directory")).name, manifest.to_json().encode())
        directory.commit()
    finally:
        directory.close(keep=False)
    return opened(to)


def write_onnx(model: Any, source: Artifact, to: Path, recipe: str, finish: Finish) -> Artifact:
    """Write an ONNX file and its manifest.

    Raises:
        UnsupportedModelError: more than an ONNX file holds.
        ResourceError, LockedError: about the target.
    """
    if model.ByteSize() > _ONNX_LIMIT:
        raise UnsupportedModelError(f"{source.path}: {model.ByteSize():,} bytes do not fit one ONNX file; write an IR")
    with AtomicFile(to, manifest=True) as file:
        file.write(model.SerializeToString(deterministic=True))
        file.commit(make_manifest(source, recipe, finish(to)).to_json().encode())
    return opened(to)


def opened(path: Path) -> Artifact:
    """What was written, opened by the format that reads it."""
    return unread(path) if path.suffix == ".onnx" else open_artifact(path)


def _companions(source: Artifact) -> Iterable[tuple[str, Path]]:
    """Name in the directory, and path, of what is carried over."""
    written = {XML, BIN, "edgekit.manifest.json"}
    for file in source.files if source.path.is_dir() else ():
        if file.name not in written and file.is_relative_to(source.path):
            yield file.relative_to(source.path).as_posix(), file


def make_manifest(source: Artifact | None, recipe: str, quality: Mapping[str, Any]) -> Manifest:
    """What to record about a pass over a source; None for what was no file."""
    return Manifest(
        sources={file.name: sha256(file) for file in (source.files if source else ())},
        recipe=recipe,
        versions={name: _version(name) for name in ("edgekit-core", "edgekit-openvino", "nncf", "openvino", "numpy")},
        quality=quality,
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # a source tree on the path
        return "0"


__all__ = [
    "Finish",
    "as_openvino",
    "inputs",
    "library",
    "low_bit",
    "make_manifest",
    "onnx_inputs",
    "op_names",
    "opened",
    "quantizers",
    "read_file",
    "read_ir",
    "read_onnx",
    "rename_new",
    "weight_bytes",
    "write_ir",
    "write_onnx",
    "xml_of",
]
