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
``<stack's name>``      float32 [experts, cols]; of a stack of experts the mean squares alone, each row over the tokens
                        that reached the expert; zeros where none did
``<stack>.counts``      float32 [experts], how many tokens reached each expert
metadata                ``format``: ``edgekit.calibration``; ``version``: ``1``; ``model``, ``text``: SHA-256;
                        ``inputs``: JSON, for each moment the names of the matrices that share it; ``experts``: the
                        same for the stacks, if there are any
======================  ===================================================================================
"""

from __future__ import annotations

import functools
import hashlib
import itertools
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
from edgekit.typing import F32, F64, Ints

#: Columns of the widest matrix whose whole moment is stored (1 GiB); of wider ones only blocks on the diagonal are.
WIDEST = 1 << 14
FORMAT, VERSION = "edgekit.calibration", "1"
_WINDOWS = ("windows", "held_out")
#: Matrices of a layer that have the same input, in the order in which a layer uses them.
GROUPS = (("attn_q", "attn_k", "attn_v", "attn_qkv"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
#: Stacks of experts of a layer that have the same input.
STACKS = (("ffn_gate_exps", "ffn_up_exps"), ("ffn_gate_up_exps",), ("ffn_down_exps",))
COUNTS = ".counts"
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
        moments: the moments by name; they are read on demand, see `moment`. Of stacks of experts the mean squares,
            and under the name with ``.counts`` how many tokens reached each expert.
        path: the calibration file; None if the calibration is in memory.
        experts: the names of the stacks of experts that share an input, by the name of the first.
    """

    windows: Ints = attrs.field(repr=False)
    held_out: Ints = attrs.field(repr=False)
    model: str
    text: str
    inputs: Mapping[str, tuple[str, ...]] = attrs.field(repr=False)
    moments: Mapping[str, Tensor] = attrs.field(repr=False)
    path: Path | None = None
    experts: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, repr=False)

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
        """Return the mean squared inputs of each matrix, float32 [cols], by its name, for `edgekit.quantize`.

        Those of a stack of experts are [experts, cols], with zeros for an expert that no token reached.
        """
        result: dict[str, F32] = {}
        for name, shared in self.inputs.items():
            values = self.moments[name].read()
            diagonal = np.diagonal(values, axis1=-2, axis2=-1).astype(np.float32).reshape(-1)
            result.update(dict.fromkeys(shared, diagonal))
        for name, shared in self.experts.items():
            means: F32 = self.moments[name].read().astype(np.float32, copy=False)
            result.update(dict.fromkeys(shared, means))
        return result

    def expert_counts(self) -> dict[str, F64]:
        """Return how many tokens reached each expert, float64 [experts], by the name of the stack."""
        return {
            stack: self.moments[name + COUNTS].read().astype(np.float64)
            for name, shared in self.experts.items()
            for stack in shared
        }

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the calibration that rounding depends on."""
        digest = hashlib.sha256(f"{self.model} {self.text} {json.dumps(self._shared())}".encode())
        names = [*self.inputs, *expert_arrays(self.experts)]
        moments = (self.moments[name].read() for name in names)  # one at a time: all can be gigabytes
        for array in itertools.chain((self.windows, self.held_out), moments):
            digest.update(safetensors.to_bytes(array))
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the calibration to a file.

        Raises:
            ResourceError: the file cannot be written.
            LockedError: another process writes it.
        """
        arrays = {"windows": as_ids(self.windows), "held_out": as_ids(self.held_out)}
        arrays |= {name: self.moments[name].read() for name in (*self.inputs, *expert_arrays(self.experts))}
        safetensors.write(path, arrays, metadata_of(self.model, self.text, self.inputs, self.experts))

    def refuse_other_model(self, artifact: Artifact) -> None:
        """Raise an error if the calibration was measured on another model than the artifact's.

        Raises:
            UsageError: a matrix is missing or has another shape, or the model's files differ.
        """
        where = self.path or "the calibration"
        tensors = artifact.model.tensors
        for name, shared in (*self.inputs.items(), *self.experts.items()):
            shape = self.moments[name].shape
            cols = shape[-1] if name in self.experts else columns(shape)
            for matrix in shared:
                if matrix not in tensors:
                    raise UsageError(f"{where}: {matrix} is not in {artifact.path}; calibrate this model")
                if tensors[matrix].shape[-1] != cols:
                    raise UsageError(
                        f"{where}: {matrix} has {cols} columns, in {artifact.path} {tensors[matrix].shape[-1]}; "
                        "calibrate this model"
                    )
                if name in self.experts and tensors[matrix].shape[0] != shape[0]:
                    raise UsageError(
                        f"{where}: {matrix} has {shape[0]} experts, in {artifact.path} {tensors[matrix].shape[0]}; "
                        "calibrate this model"
                    )
        if model_digest(artifact) != self.model:
            raise UsageError(f"{where}: it is of a model with other weights than {artifact.path}; calibrate this model")

    def _shared(self) -> dict[str, list[str]]:
        return {name: list(shared) for name, shared in (*self.inputs.items(), *self.experts.items())}


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
    last = [("token_embd.weight" if model.config.tied else "output.weight",)] if outputs else []
    return _groups(model, GROUPS, last)


def experts_of(model: Model) -> dict[str, tuple[str, ...]]:
    """Return the groups of a model's stacks of experts that share an input, by the name of their first."""
    return _groups(model, STACKS)


def expert_arrays(experts: Iterable[str]) -> list[str]:
    """Return the names of the arrays of stacks of experts in a calibration file, in their order."""
    return [array for name in experts for array in (name, name + COUNTS)]


def _groups(
    model: Model, kinds: Iterable[tuple[str, ...]], others: Iterable[tuple[str, ...]] = ()
) -> dict[str, tuple[str, ...]]:
    kinds = tuple(kinds)
    groups = [
        tuple(f"blk.{layer}.{name}.weight" for name in group) for layer in range(model.config.layers) for group in kinds
    ]
    there = [tuple(name for name in group if name in model.tensors) for group in (*groups, *others)]
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


def metadata_of(
    model: str, text: str, inputs: Mapping[str, Iterable[str]], experts: Mapping[str, Iterable[str]] | None = None
) -> dict[str, str]:
    """Return the safetensors metadata of a calibration file; see the module's docstring."""
    metadata = {"format": FORMAT, "version": VERSION, "model": model, "text": text, "inputs": _names(inputs)}
    return metadata | ({"experts": _names(experts)} if experts else {})


def _names(groups: Mapping[str, Iterable[str]]) -> str:
    return json.dumps({name: list(names) for name, names in groups.items()})


def header_of(calibration: Calibration, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the header of a calibration file, that is everything before the bytes of its first array.

    Args:
        calibration: the windows, the digests and the groups of matrices.
        shapes: the shape of each moment, by name.
    """
    c = calibration
    parts = [Part("windows", "int32", c.windows.shape), Part("held_out", "int32", c.held_out.shape)]
    parts += [Part(name, "float32", shapes[name]) for name in (*c.inputs, *expert_arrays(c.experts))]
    return safetensors.build_header(parts, metadata_of(c.model, c.text, c.inputs, c.experts))


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
    experts = _parsed(path, metadata, "experts") if "experts" in metadata else {}
    arrays = expert_arrays(experts)
    for name in (*_WINDOWS, *inputs, *arrays):
        if name not in tensors:
            raise invalid(path, f"tensor {name!r:.80} is missing", 8)
    _check(path, tensors, inputs)
    _check_experts(path, tensors, experts)
    windows, held_out = (tensors[name].read() for name in _WINDOWS)
    moments = {name: tensors[name] for name in (*inputs, *arrays)}
    return Calibration(windows, held_out, metadata["model"], metadata["text"], inputs, moments, path, experts)


def _inputs(path: Path, metadata: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    for key in ("model", "text", "inputs"):
        if key not in metadata:
            raise invalid(path, f"its metadata lack {key}", 8)
    return _parsed(path, metadata, "inputs")


def _parsed(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, tuple[str, ...]]:
    parsed: Any = strict_json(metadata[key].encode(), path, f"its {key}", 8, _VALUES)
    named = isinstance(parsed, dict) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in parsed.values()
    )
    if not named:
        raise invalid(path, f"its {key} are no lists of names", 8)
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


def _check_experts(path: Path, tensors: Mapping[str, Tensor], experts: Iterable[str]) -> None:
    for name in experts:
        means, counts = tensors[name], tensors[name + COUNTS]
        if means.dtype != "float32" or len(means.shape) != 2:
            raise invalid(path, f"{name!r:.80} are no means of experts, float32 [experts, cols]", 8)
        if counts.dtype != "float32" or counts.shape != means.shape[:1]:
            raise invalid(path, f"{name + COUNTS!r:.80} are no counts of {means.shape[0]} experts", 8)


__all__ = [
    "COUNTS",
    "FORMAT",
    "GROUPS",
    "STACKS",
    "VERSION",
    "WIDEST",
    "Calibration",
    "as_ids",
    "columns",
    "expert_arrays",
    "experts_of",
    "header_of",
    "inputs_of",
    "metadata_of",
    "model_digest",
    "moment_shape",
    "read_calibration",
    "text_digest",
]
