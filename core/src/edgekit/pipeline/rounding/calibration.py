"""The calibration of a model: the second moments of its matrices' inputs on a text, in memory or in a file.

With X [tokens, cols] the inputs of a weight matrix on the calibration text, its moment is ``X^T X / tokens``,
float32 [cols, cols], symmetric. The diagonal is what llama.cpp's importance matrices hold. Matrices with the same input
(Q, K and V of a layer; gate and up) share one moment.

A calibration file is a safetensors file:

======================  ===================================================================================
``windows``             int32 [count, context], the token ids that the moments are measured on
``held_out``            int32 [others, context], further windows of the same text, for measuring the result
``<matrix's name>``     float32 [cols, cols]; of a matrix with more than `WIDEST` columns only the blocks on the
                        diagonal, [blocks, width, width]
metadata                ``format``: ``edgekit.calibration``; ``version``: ``1``; ``model``, ``text``: SHA-256;
                        ``inputs``: JSON, for each moment the names of the matrices that share it
======================  ===================================================================================
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, UsageError
from edgekit.files.digests import sha256
from edgekit.files.foreign import invalid, strict_json
from edgekit.formats import safetensors
from edgekit.formats.safetensors import Part
from edgekit.tensor import Tensor
from edgekit.typing import F32, Ints

#: Columns of the widest matrix whose whole moment is stored (1 GiB); of wider ones only blocks on the diagonal are.
WIDEST = 1 << 14
FORMAT, VERSION = "edgekit.calibration", "1"
_WINDOWS = ("windows", "held_out")
#: Matrices of a layer that have the same input, in the order in which a layer uses them.
GROUPS = (("attn_q", "attn_k", "attn_v", "attn_qkv"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
_VALUES = 1 << 20


@attrs.frozen(eq=False)
class Calibration:
    """Second moments of the inputs of a model's weight matrices on a text.

    Attributes:
        windows: token ids, int32 [count, context], that the moments are measured on.
        held_out: token ids, int32 [others, context], of the same text, for measuring the result.
        model: SHA-256 (hex) of the model's files, as `model_digest` returns it.
        text: SHA-256 (hex) of the text, or of the token ids.
        inputs: the names of the matrices that share a moment, by the moment's name, which is that of the first.
        moments: the moments by name; they are read on demand, see `moment`.
        path: the calibration file; None if the calibration is in memory.
    """

    windows: Ints = attrs.field(repr=False)
    held_out: Ints = attrs.field(repr=False)
    model: str
    text: str
    inputs: Mapping[str, tuple[str, ...]] = attrs.field(repr=False)
    moments: Mapping[str, Tensor] = attrs.field(repr=False)
    path: Path | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens in all windows; the moments are means over them."""
        return int(self.windows.size)

    @property
    def context(self) -> int:
        """The number of tokens in a window."""
        return int(self.windows.shape[1])

    def moment(self, matrix: str) -> F32 | None:
        """Return the moment of a matrix's inputs, float32 [cols, cols] or [blocks, width, width]; None if unknown."""
        for name, shared in self.inputs.items():
            if matrix in shared:
                tensor = self.moments[name]
                values: F32 = tensor.read().astype(np.float32, copy=False)
                return values
        return None

    def importance(self) -> dict[str, F32]:
        """Return the mean squared inputs of each matrix, float32 [cols], by its name, for `edgekit.quantize`."""
        result: dict[str, F32] = {}
        for name, shared in self.inputs.items():
            values = self.moments[name].read()
            diagonal = np.diagonal(values, axis1=-2, axis2=-1).astype(np.float32).reshape(-1)
            result.update(dict.fromkeys(shared, diagonal))
        return result

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the calibration that rounding depends on."""
        digest = hashlib.sha256(f"{self.model} {self.text} {json.dumps(self._shared())}".encode())
        for array in (self.windows, self.held_out, *(self.moments[name].read() for name in self.inputs)):
            digest.update(safetensors.to_bytes(array))
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the calibration to a file.

        Raises:
            ResourceError: the file cannot be written.
            LockedError: another process writes it.
        """
        arrays = {"windows": as_ids(self.windows), "held_out": as_ids(self.held_out)}
        arrays |= {name: self.moments[name].read() for name in self.inputs}
        safetensors.write(path, arrays, metadata_of(self.model, self.text, self.inputs))

    def refuse_other_model(self, artifact: Artifact) -> None:
        """Raise an error if the calibration was measured on another model than the artifact's.

        Raises:
            UsageError: a matrix is missing or has another shape, or the model's files differ.
        """
        where = self.path or "the calibration"
        tensors = artifact.model.tensors
        for name, shared in self.inputs.items():
            cols = columns(self.moments[name].shape)
            for matrix in shared:
                if matrix not in tensors:
                    raise UsageError(f"{where}: {matrix} is not in {artifact.path}; calibrate this model")
                if tensors[matrix].shape[-1] != cols:
                    raise UsageError(
                        f"{where}: {matrix} has {cols} columns, in {artifact.path} {tensors[matrix].shape[-1]}; "
                        "calibrate this model"
                    )
        if model_digest(artifact) != self.model:
            raise UsageError(f"{where}: it is of a model with other weights than {artifact.path}; calibrate this model")

    def _shared(self) -> dict[str, list[str]]:
        return {name: list(shared) for name, shared in self.inputs.items()}


def columns(shape: tuple[int, ...]) -> int:
    """Return the number of columns of a matrix whose moment has the given shape."""
    return shape[-1] if len(shape) == 2 else shape[0] * shape[-1]


def moment_shape(cols: int) -> tuple[int, ...]:
    """Return the shape of the moment of a matrix with `cols` columns: whole, or as blocks on the diagonal."""
    if cols <= WIDEST:
        return (cols, cols)
    width = next(size for size in range(WIDEST, 0, -1) if cols % size == 0)
    return (cols // width, width, width)


def inputs_of(model: Model, outputs: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the groups of a model's matrices that share an input, by the name of their first.

    Args:
        model: the model.
        outputs: whether to include the output matrix.

    Returns:
        Canonical names, in the order of the forward pass.
    """
    groups = [
        tuple(f"blk.{layer}.{name}.weight" for name in group)
        for layer in range(model.config.layers)
        for group in GROUPS
    ]
    if outputs:
        groups.append(("token_embd.weight" if model.config.tied else "output.weight",))
    there = [tuple(name for name in group if name in model.tensors) for group in groups]
    return {group[0]: group for group in there if group}


def model_digest(artifact: Artifact) -> str:
    """Return the SHA-256 (hex) of the names and digests of a model's files, sorted by name.

    Raises:
        MissingFileError: a file cannot be read.
    """
    digests = sorted((file.name, sha256(file)) for file in artifact.files)
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def text_digest(text: object) -> str:
    """Return the SHA-256 (hex) of a text in UTF-8, or of token ids as little-endian int64."""
    data = text.encode() if isinstance(text, str) else np.asarray(text).astype("<i8").tobytes()
    return hashlib.sha256(data).hexdigest()


def as_ids(windows: Ints) -> Ints:
    """Return token ids as a contiguous int32 array, the dtype in which they are stored."""
    return np.ascontiguousarray(windows, np.int32)


def metadata_of(model: str, text: str, inputs: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return the safetensors metadata of a calibration file; see the module's docstring."""
    shared = json.dumps({name: list(names) for name, names in inputs.items()})
    return {"format": FORMAT, "version": VERSION, "model": model, "text": text, "inputs": shared}


def header_of(calibration: Calibration, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the header of a calibration file, that is everything before the bytes of its first array.

    Args:
        calibration: the windows, the digests and the groups of matrices.
        shapes: the shape of each moment, by name.
    """
    c = calibration
    parts = [Part("windows", "int32", c.windows.shape), Part("held_out", "int32", c.held_out.shape)]
    parts += [Part(name, "float32", shapes[name]) for name in c.inputs]
    return safetensors.build_header(parts, metadata_of(c.model, c.text, c.inputs))


def read_calibration(path: Path) -> Calibration:
    """Open a calibration file; the moments are read on demand.

    Raises:
        InvalidFileError: the file is not a calibration file, or is truncated or malformed.
        MissingFileError: the file does not exist or cannot be read.
    """
    tensors, metadata = safetensors.open_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InvalidFileError(f"{path}: it is no calibration file; make one with edgekit calibrate")
    if metadata.get("version") != VERSION:
        raise InvalidFileError(
            f"{path}: calibration files of version {metadata.get('version', '?')!r:.20} are not supported, "
            f"those of {VERSION} are; calibrate again"
        )
    inputs = _inputs(path, metadata)
    for name in (*_WINDOWS, *inputs):
        if name not in tensors:
            raise invalid(path, f"tensor {name!r:.80} is missing", 8)
    _check(path, tensors, inputs)
    windows, held_out = (tensors[name].read() for name in _WINDOWS)
    moments = {name: tensors[name] for name in inputs}
    return Calibration(windows, held_out, metadata["model"], metadata["text"], inputs, moments, path)


def _inputs(path: Path, metadata: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    for key in ("model", "text", "inputs"):
        if key not in metadata:
            raise invalid(path, f"its metadata lack {key}", 8)
    parsed: Any = strict_json(metadata["inputs"].encode(), path, "its inputs", 8, _VALUES)
    named = isinstance(parsed, dict) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in parsed.values()
    )
    if not named:
        raise invalid(path, "its inputs are no lists of names", 8)
    return {name: tuple(shared) for name, shared in parsed.items()}


def _check(path: Path, tensors: Mapping[str, Tensor], inputs: Iterable[str]) -> None:
    for name in _WINDOWS:
        shape = tensors[name].shape
        if len(shape) != 2 or tensors[name].dtype != "int32" or shape[1] != tensors["windows"].shape[1]:
            raise invalid(path, f"{name} are no token ids [count, context]", 8)
    for name in inputs:
        shape = tensors[name].shape
        square = len(shape) in (2, 3) and shape[-1] == shape[-2] > 0
        if tensors[name].dtype != "float32" or not square or moment_shape(columns(shape)) != shape:
            raise invalid(path, f"{name!r:.80} is no moment, float32 [cols, cols]", 8)


__all__ = [
    "FORMAT",
    "GROUPS",
    "VERSION",
    "WIDEST",
    "Calibration",
    "as_ids",
    "columns",
    "header_of",
    "inputs_of",
    "metadata_of",
    "model_digest",
    "moment_shape",
    "read_calibration",
    "text_digest",
]
