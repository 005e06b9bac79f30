"""Converts whole models with `openvino.convert_model`: ONNX files and torch modules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact, Layout
from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError, UsageError
from edgekit.files.atomic import AtomicDirectory, writing
from edgekit.files.guard import refuse_harm
from edgekit.manifest import Manifest
from edgekit.recipe import Plan
from edgekit.tensor import QuantizedTensor
from edgekit_openvino import graph
from edgekit_openvino.library import last_line, openvino, silent
from edgekit_openvino.models import write_ir
from edgekit_openvino.writer import OWNED, XML


def convert_model(model: Any, to: str | os.PathLike[str], *, example_input: Any = None, input: Any = None) -> Artifact:
    """Convert any ONNX file, or any torch module, to an IR.

    Args:
        model: the path of an ONNX file, or a ``torch.nn.Module`` in evaluation mode.
        to: the directory to write.
        example_input: the input with which the module is traced: a tensor, a tuple or a dict of tensors.
        input: names, shapes and types of the inputs, as for `openvino.convert_model`.

    Returns:
        The artifact, opened; its ``model`` is not available.

    Raises:
        MissingFileError: the file does not exist.
        UsageError: the target is the file, or a directory that contains it, or is inside it.
        InvalidFileError: OpenVINO cannot read the file.
        UnsupportedModelError: OpenVINO cannot convert the module; the message quotes it.

    Example:
        >>> convert_model(module.eval(), "ir", example_input=torch.zeros(1, 3, 32, 32))  # doctest: +SKIP
    """
    if isinstance(model, (str, os.PathLike)):
        refuse_harm(Path(to), [Path(model)])
    converted = converted_model(model, example_input=example_input, input=input)
    return write_ir(converted, None, Path(to), "convert_model", lambda xml: {})


def converted_model(model: Any, *, example_input: Any = None, input: Any = None) -> Any:
    """Return the converted `openvino.Model`, with nodes named by `edgekit_openvino.graph.name_nodes`."""
    is_file = isinstance(model, (str, os.PathLike))
    if is_file and not Path(model).is_file():
        raise MissingFileError(f"{model}: no such file")
    given = {key: value for key, value in (("example_input", example_input), ("input", input)) if value is not None}
    try:
        with silent():
            converted = openvino().convert_model(os.fspath(model) if is_file else model, **given)
    except Exception as error:  # OpenVINO's own classes, and whatever the module raises while it is traced
        if is_file:
            raise InvalidFileError(
                f"{model}: OpenVINO does not read it: {last_line(error)}; export it again"
            ) from error
        raise UnsupportedModelError(
            f"{type(model).__name__}: OpenVINO cannot convert it: {last_line(error)}; trace it with example_input"
        ) from error
    graph.name_nodes(converted)
    return converted


class WholeWriter:
    """Writes the IR of a file that OpenVINO converts as a whole; see `edgekit.artifact.Writer`."""

    done = 0

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        if plan.recipe != "as is":
            raise UsageError(
                f"{layout.source.path}: OpenVINO converts it as a whole, so no recipe applies ({plan.recipe}); convert "
                "it first, then compress or quantize the IR with the passes openvino-compress or openvino-quantize"
            )
        openvino()
        self._layout, self._manifest = layout, manifest
        self._directory = AtomicDirectory(path, owned=OWNED)

    def write(self, tensor: QuantizedTensor) -> None:
        """Never called, since the plan has no tensors."""
        raise UsageError(f"{self._directory.target}: tensor {tensor.name} came where the plan has none")

    def commit(self) -> None:
        """Convert the file, and move the directory into place."""
        model = converted_model(self._layout.source.path)
        with writing(self._directory.target):
            openvino().save_model(model, str(self._directory.path / XML), compress_to_fp16=False)
        self._directory.write("edgekit.manifest.json", self._manifest.to_json().encode())
        self._directory.commit()

    def close(self, keep: bool = False) -> None:
        """Release everything; without a previous `commit` the target is unchanged."""
        self._directory.close(False)


__all__ = ["WholeWriter", "convert_model", "converted_model"]
