"""Quantized tensors in safetensors files: each part is an array of its own, ``<name>.<part>``.

The file's metadata says, under the key ``edgekit``, what they belong to:

    {"tensors": {"<name>": {"precision": "affine:int4-sym-g32", "shape": [rows, cols], "parts": ["codes", "scale"]}}}

A part whose first dimension is the tensor's rows is read in row slices; others (a scale for the whole tensor)
are read whole. What a precision's parts look like is asked of its reference, so that a file which claims
anything else is refused before its values are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, InvalidFileError, MissingPluginError, UnknownPrecisionError
from edgekit.formats.safetensors import Part, strict_json
from edgekit.precision import Precision
from edgekit.recipe import fits
from edgekit.reference import reference
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor, carrier

KEY = "edgekit"
#: The longest row; a precision is asked for its parts by encoding two rows of this length at most.
LONGEST_ROW = 1 << 22


@attrs.frozen
class PartLayout:
    """How a part grows with the tensor's rows.

    Attributes:
        dtype: by numpy's or ml_dtypes' name, for a float32 source.
        per_row: whether the first dimension is the rows.
        packed: neither that nor fixed: several rows share a byte.
        tail: shape without the rows; the whole shape of a fixed part; unknown, and empty, for a packed one.
    """

    dtype: str
    per_row: bool
    packed: bool
    tail: tuple[int, ...]

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of this part for that many rows."""
        return (rows, *self.tail) if self.per_row else self.tail


@lru_cache(maxsize=256)
def part_layouts(precision: Precision, cols: int) -> Mapping[str, PartLayout] | None:
    """The parts of rows of that length; None where the reference of the precision can only decode."""
    encode = reference(precision).encode
    try:
        two, three = (encode(np.ones((rows, cols), np.float32), precision) for rows in (2, 3))
    except (EdgekitError, NotImplementedError):
        return None
    return {name: _layout(two[name], three[name]) for name in two}


def _layout(two: npt.NDArray[Any], three: npt.NDArray[Any]) -> PartLayout:
    per_row = two.shape[:1] == (2,) and three.shape == (3, *two.shape[1:])
    packed = not per_row and two.shape != three.shape
    return PartLayout(two.dtype.name, per_row, packed, two.shape[1:] if per_row else () if packed else two.shape)


def stored_parts(tensor: Tensor | EncodedTensor, name: str, precision: Precision) -> list[Part]:
    """What storing that tensor in that precision will take; exact but for packed parts and 2-byte sources."""
    if precision.convention == "float":
        return [Part(name, _FLOATS[precision.kind], tensor.shape)]
    if isinstance(tensor, EncodedTensor) and tensor.precision == precision and precision.rowwise:
        sample = tensor.read_parts(0, 1)
        return [Part(f"{name}.{key}", p.dtype.name, (tensor.rows, *p.shape[1:])) for key, p in sample.items()]
    layouts = part_layouts(precision, tensor.shape[-1]) or {}
    parts = [Part(f"{name}.{key}", part.dtype, part.shape(tensor.rows)) for key, part in layouts.items()]
    missing = math.ceil(tensor.size * precision.bits_per_weight / 8) - sum(part.nbytes for part in parts)
    return parts if missing <= 0 else [*parts, Part(f"{name}.packed", "uint8", (missing,))]


_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def parts_of(tensor: Any, shape: tuple[int, ...]) -> dict[str, tuple[Part, npt.NDArray[Any]]]:
    """The arrays to store for a `QuantizedTensor`, in order; plain floats keep the tensor's name and shape."""
    if tensor.precision.convention == "float":
        dtype = _FLOATS[tensor.precision.kind]
        return {"": (Part(tensor.name, dtype, shape), tensor.parts["values"])}
    return {
        key: (Part(f"{tensor.name}.{key}", part.dtype.name, part.shape), part) for key, part in tensor.parts.items()
    }


def describe(tensors: Mapping[str, tuple[Precision, tuple[int, ...], Sequence[str]]]) -> dict[str, str]:
    """The file's metadata for quantized tensors: name -> precision, shape, parts."""
    if not tensors:
        return {}
    described = {
        name: {"precision": precision.name, "shape": list(shape), "parts": list(parts)}
        for name, (precision, shape, parts) in tensors.items()
    }
    return {KEY: json.dumps({"tensors": described}, separators=(",", ":"))}


def assemble(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, AnyTensor]:
    """Put the parts of quantized tensors together, in the place of the first one; the others stay.

    Raises:
        InvalidFileError: the metadata is damaged, or the parts are not what the precision has.
        MissingPluginError: a precision that no installed plugin knows.
    """
    if KEY not in metadata:
        return dict(tensors)
    encoded = {name: _encoded(name, fields, tensors, path) for name, fields in _described(metadata[KEY], path).items()}
    owner = {part.name: tensor.name for tensor, parts in encoded.values() for part in parts}
    if len(owner) < sum(len(parts) for _, parts in encoded.values()) or not encoded.keys().isdisjoint(tensors):
        raise InvalidFileError(f"{path}: two quantized tensors share a name; convert the model again")
    assembled: dict[str, AnyTensor] = {}
    for name, tensor in tensors.items():
        assembled[owner.get(name, name)] = encoded[owner[name]][0] if name in owner else tensor
    return assembled


def _described(text: str, path: Path) -> dict[str, Any]:
    parsed = strict_json(text.encode(), path, f"the metadata {KEY!r}")
    tensors = parsed.get("tensors") if isinstance(parsed, dict) else None
    if not isinstance(tensors, dict):
        raise InvalidFileError(f"{path}: the metadata {KEY!r} lists no tensors; convert the model again")
    return tensors


def _encoded(name: str, fields: Any, tensors: Mapping[str, Tensor], path: Path) -> tuple[EncodedTensor, list[Tensor]]:
    def refuse(fault: str) -> InvalidFileError:
        return InvalidFileError(f"{path}: quantized tensor {name}: {fault}; convert the model again")

    if not (isinstance(fields, dict) and fields.keys() == {"precision", "shape", "parts"}):
        raise refuse("wants exactly precision, shape and parts")
    shape, keys = fields["shape"], fields["parts"]
    if not (isinstance(shape, list) and shape and all(type(d) is int and d > 0 for d in shape)):
        raise refuse(f"shape {shape!r} is no list of sizes")
    if math.prod(shape) >= 1 << 62 or shape[-1] > LONGEST_ROW:
        raise refuse(f"shape {shape!r} is beyond any model")
    if not (isinstance(keys, list) and keys and all(isinstance(k, str) and f"{name}.{k}" in tensors for k in keys)):
        raise refuse(f"its parts {keys!r} are not in the file")
    precision = _precision(fields["precision"], f"{path}: quantized tensor {name}")
    parts = {key: tensors[f"{name}.{key}"] for key in keys}
    rows = math.prod(shape[:-1])
    fault = _fault(precision, tuple(shape), parts)
    if fault:
        raise refuse(fault)
    layouts = part_layouts(precision, shape[-1])
    per_row = {key: layouts[key].per_row if layouts else part.shape[:1] == (rows,) for key, part in parts.items()}
    sliceable = not (layouts and any(layout.packed for layout in layouts.values()))
    read_parts = partial(_read_parts, parts, per_row, rows)
    nbytes = sum(part.nbytes for part in parts.values())
    tensor = EncodedTensor(name, tuple(shape), precision, nbytes, read_parts, sliceable)
    return tensor, list(parts.values())


def _precision(name: object, where: str) -> Precision:
    from edgekit.encoding import find_precision

    try:
        return find_precision(str(name))
    except UnknownPrecisionError as error:
        raise MissingPluginError(f"{where}: {error}; install the plugin that brings it") from error


def _fault(precision: Precision, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> str:
    """What is wrong with parts for a tensor of that shape; empty where nothing is."""
    if precision.convention == "float" or not fits(precision, shape):
        return f"{precision.name} cannot hold rows of {shape[-1]}"
    layouts = part_layouts(precision, shape[-1])
    if layouts is None:
        wanted = math.prod(shape) * precision.bits_per_weight
        held = 8 * sum(part.nbytes for part in parts.values())
        return "" if held == wanted else f"its parts have {held} bits, {precision.name} takes {wanted}"
    if layouts.keys() != parts.keys():
        return f"{precision.name} has the parts {', '.join(layouts)}, not {', '.join(parts)}"
    for key, layout in layouts.items():
        part, expected = parts[key], layout.shape(math.prod(shape[:-1]))
        if part.dtype not in _dtypes(layout, precision):
            return f"part {key} is {part.dtype}, {precision.name} has {layout.dtype}"
        if not layout.packed and part.shape != expected:
            return f"part {key} has shape {list(part.shape)}, {precision.name} takes {list(expected)}"
        if layout.packed and 8 * part.nbytes < math.prod(shape) * precision.bits:
            return f"part {key} has {part.nbytes} bytes, too few for {math.prod(shape)} codes"
    return ""


def _dtypes(layout: PartLayout, precision: Precision) -> tuple[str, ...]:
    follows = precision.scale_dtype == "source" and layout.dtype == "float32"
    return ("float32", "float16", "bfloat16") if follows else (layout.dtype,)


def _read_parts(
    parts: Mapping[str, Tensor], per_row: Mapping[str, bool], rows: int, start: int, stop: int
) -> dict[str, npt.NDArray[Any]]:
    """The parts of rows ``start:stop`` of `rows`."""
    return {
        key: _native(_rows(part, start, stop) if per_row[key] and stop - start < rows else part.read(), part.dtype)
        for key, part in parts.items()
    }


def _rows(part: Tensor, start: int, stop: int) -> npt.NDArray[Any]:
    """``part[start:stop]`` along its first dimension, reading no more where it has more than one."""
    if len(part.shape) < 2:
        return part.read()[start:stop]
    inner = math.prod(part.shape[1:-1])
    return part.read_rows(start * inner, stop * inner).reshape(stop - start, *part.shape[1:])


def _native(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Parts in the type in which the framework has them: ml_dtypes' where numpy has none."""
    if carrier(dtype).name == dtype:
        return values
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingPluginError(f"parts of type {dtype} need a package; pip install ml-dtypes") from error
    return values.view(np.dtype(getattr(ml_dtypes, dtype)))
