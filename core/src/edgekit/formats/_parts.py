"""Quantized tensors in safetensors files: each part is a separate array, ``<name>.<part>``.

The file's metadata describes them under the key ``edgekit``:

    {"tensors": {"<name>": {"precision": "affine:int4-sym-g32", "shape": [rows, cols], "parts": ["codes", "scale"]}}}

A part whose first dimension is the tensor's rows is read in row slices; others (a scale for the whole tensor)
are read whole. What a precision's parts look like is asked of its reference, so that a file which claims
anything else is refused before its values are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from edgekit.errors import EdgekitError, InvalidFileError, MissingPluginError, UnknownPrecisionError
from edgekit.files.foreign import shown, strict_json
from edgekit.formats.safetensors import Part
from edgekit.numerics.smallfloats import bfloat16, ml_dtype
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.reference import reference
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor, carrier
from edgekit.typing import Array

KEY = "edgekit"
#: The longest row; a precision's parts are determined by encoding a few rows of at most this length.
LONGEST_ROW = 1 << 20


@attrs.frozen
class PartLayout:
    """The shape of a part of a quantized tensor.

    Attributes:
        dtype: by numpy's or ml_dtypes' name, for a float32 source.
        shape: of the whole part.
        growth: how it grows with the rows: its first dimension is the rows (``rows``), or rows are not apart
            in it (``packed``), or it has one size for all tensors (``fixed``).
    """

    dtype: str
    shape: tuple[int, ...]
    growth: Literal["rows", "packed", "fixed"]


def part_layouts(precision: Precision, shape: tuple[int, ...]) -> dict[str, PartLayout] | None:
    """Return the parts of a tensor of that shape; None if the precision's reference can only decode."""
    rows, cols = math.prod(shape[:-1]), shape[-1]
    try:
        if precision.rowwise:
            return {
                k: PartLayout(p.dtype.name, (rows, *p.shape[1:]), "rows") for k, p in _probe(precision, 1, cols).items()
            }
        eight, more = _probe(precision, 8, cols), _probe(precision, 16 + rows % 8, cols)
    except (EdgekitError, NotImplementedError):
        return None
    return {key: _layout(eight[key], more[key], rows) for key in eight}


@attrs.frozen
class Together:
    """Rows of an encoded tensor that share bytes with each other, and with no others.

    Attributes:
        rows: how many; 1 if every row has bytes of its own. Pieces of a tensor begin at a multiple of it.
        nbytes: what they take in each part in which rows share bytes.
    """

    rows: int = 1
    nbytes: Mapping[str, int] = attrs.field(factory=dict)

    def span(self, key: str, start: int, stop: int, rows: int, nbytes: int) -> tuple[int, int]:
        """Return the first byte of rows ``start:stop`` in a part, and the number of their bytes.

        Args:
            key: name of the part, which is not 0-d.
            start: a multiple of `rows`.
            stop: another one, or the end.
            rows: of the whole tensor.
            nbytes: of the whole part.
        """
        if key not in self.nbytes:
            row = nbytes // rows
            return start * row, (stop - start) * row
        first = start // self.rows * self.nbytes[key]
        return first, (nbytes if stop == rows else stop // self.rows * self.nbytes[key]) - first


def rows_together(precision: Precision, shape: tuple[int, ...]) -> Together | None:
    """Return which rows of an encoded tensor share bytes; None if they cannot be told apart.

    A precision that encodes tensors as a whole may have rows of their own all the same, and be packed in some shapes
    only: with an odd number of groups of 4 bits, for example.
    """
    if precision.rowwise:
        return Together()
    layouts = part_layouts(precision, shape)
    if layouts is None or (not precision.packed_rows and any(k.growth != "rows" for k in layouts.values())):
        return None
    shared = [key for key, layout in layouts.items() if layout.growth == "packed"]
    if not shared:
        return Together()
    eight = _probe(precision, 8, shape[-1])
    for rows in (2, 4, 8):  # eight rows end on a byte whatever the width of a code
        few = _probe(precision, rows, shape[-1])
        if all(eight[key].nbytes * rows == few[key].nbytes * 8 for key in shared):
            return Together(rows, {key: few[key].nbytes for key in shared})
    return None


def rows_apart(precision: Precision, shape: tuple[int, ...]) -> bool:
    """Return whether every row of an encoded tensor has bytes of its own in each part."""
    together = rows_together(precision, shape)
    return together is not None and together.rows == 1


@lru_cache(maxsize=256)
def _probe(precision: Precision, rows: int, cols: int) -> Mapping[str, Array]:
    return reference(precision).encode(np.ones((rows, cols), np.float32), precision, np.ones(cols, np.float32))


def _layout(eight: Array, more: Array, rows: int) -> PartLayout:
    """From the part of 8 rows and of 16 + rows % 8: eight rows end on a byte whatever the width of a code."""
    dtype = eight.dtype.name
    if eight.shape == more.shape:
        return PartLayout(dtype, eight.shape, "fixed")
    pairs = zip(eight.shape, more.shape, strict=True)
    shape = tuple(a if a == b else rows // 8 * a + b - 2 * a for a, b in pairs)
    by_rows = eight.shape[0] == 8 and more.shape[1:] == eight.shape[1:]
    return PartLayout(dtype, shape, "rows" if by_rows else "packed")


def stored_parts(tensor: Tensor | EncodedTensor, name: str, precision: Precision) -> list[Part]:
    """What storing that tensor in that precision will take."""
    if precision.convention == "float":
        return [Part(name, _FLOATS[precision.kind], tensor.shape)]
    if isinstance(tensor, EncodedTensor) and tensor.precision == precision and precision.rowwise:
        sample = tensor.read_parts(0, 1)
        return [Part(f"{name}.{key}", p.dtype.name, (tensor.rows, *p.shape[1:])) for key, p in sample.items()]
    layouts = part_layouts(precision, tensor.shape) or {}
    return [
        Part(f"{name}.{key}", _follows(tensor, precision, key, part.dtype), part.shape) for key, part in layouts.items()
    ]


def encoded_parts(tensor: AnyTensor, precision: Precision) -> dict[str, Part] | None:
    """Return type and shape of each part that a tensor is encoded to, by the part's name, before it is encoded.

    None if that is unknown: a tensor that is copied, and whose rows are not apart, or a precision that is only decoded.
    """
    if isinstance(tensor, EncodedTensor) and tensor.precision == precision:
        together = rows_together(precision, tensor.shape)
        step = 1 if tensor.sliceable else tensor.together
        if together is None or not step or step % together.rows:
            return None
        sample = tensor.read_parts(0, min(step, tensor.rows))
        shapes = {key: (tensor.rows, *p.shape[1:]) if p.ndim else () for key, p in sample.items()}
        if together.nbytes:
            packed = part_layouts(precision, tensor.shape) or {}
            shapes |= {key: packed[key].shape for key in together.nbytes}
        return {key: Part(key, p.dtype.name, shapes[key]) for key, p in sample.items()}
    layouts = part_layouts(precision, tensor.shape or (1,))
    if layouts is None:
        return None
    return {key: Part(key, _follows(tensor, precision, key, part.dtype), part.shape) for key, part in layouts.items()}


def _follows(tensor: Tensor | EncodedTensor, precision: Precision, key: str, dtype: str) -> str:
    """The type of a part: for scales that take the source's type, what the reference makes of it, else as it is."""
    if precision.scale_dtype != "source" or dtype != "float32" or not isinstance(tensor, Tensor):
        return dtype
    if tensor.dtype not in ("float16", "bfloat16") or not reference(precision).traits.source_dtypes:
        return dtype
    try:
        return _narrow_types(precision, tensor.dtype, tensor.shape[-1] if tensor.shape else 1)[key]
    except MissingPluginError:  # encoding will say what is missing
        return tensor.dtype


@lru_cache(maxsize=256)
def _narrow_types(precision: Precision, dtype: str, cols: int) -> Mapping[str, str]:
    """The types of the parts of a row of a 2-byte type: some references keep it for groups, and not for whole rows."""
    row = np.ones((1, cols), bfloat16() if dtype == "bfloat16" else np.float16)
    parts = reference(precision).encode(row, precision, np.ones(cols, np.float32))
    return {key: part.dtype.name for key, part in parts.items()}


_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def written_parts(
    parts: Mapping[str, Part], name: str, precision: Precision, shape: tuple[int, ...]
) -> dict[str, Part]:
    """The arrays that a tensor's parts become in the file, in order; plain floats keep the tensor's name and shape."""
    if precision.convention == "float":
        return {"": Part(name, _FLOATS[precision.kind], shape)}
    return {key: Part(f"{name}.{key}", _stored(precision, key, part.dtype), part.shape) for key, part in parts.items()}


def _stored(precision: Precision, key: str, dtype: str) -> str:
    """Return the type under which a part is stored: that of its values, if an integer only carries their bits."""
    return "float8_e4m3fn" if (key, precision.scale_dtype, dtype) == _CARRIED_SCALE else dtype


#: (part, the precision's scale type, the array's type)
_CARRIED_SCALE = ("scale", "float8_e4m3fn", "uint8")


def describe(tensors: Mapping[str, tuple[Precision, tuple[int, ...], Sequence[str]]]) -> dict[str, str]:
    """Return the file's metadata for quantized tensors: name -> precision, shape, parts."""
    if not tensors:
        return {}
    described = {
        name: {"precision": precision.name, "shape": list(shape), "parts": list(parts)}
        for name, (precision, shape, parts) in tensors.items()
    }
    return {KEY: json.dumps({"tensors": described}, separators=(",", ":"))}


def assemble(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, AnyTensor]:
    """Replace the parts of each quantized tensor by one encoded tensor; other tensors are unchanged.

    Raises:
        InvalidFileError: the metadata is malformed, or the parts do not match the precision.
        MissingPluginError: no installed plugin registers the precision.
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
    """A quantized tensor, and the tensors of the file that are its parts."""
    where = f"{path}: quantized tensor {name:.200}"
    fault = _malformed(name, fields, tensors)
    if not fault:
        shape = tuple(fields["shape"])
        parts = {key: tensors[f"{name}.{key}"] for key in fields["parts"]}
        precision = _precision(fields["precision"], where)
        fault = _fault(precision, shape, parts)
    if fault:
        raise InvalidFileError(f"{where}: {fault}; convert the model again")
    source = _Source.of(precision, shape, parts)
    nbytes = sum(part.nbytes for part in parts.values())
    return EncodedTensor(name, shape, precision, nbytes, source.read, source.sliceable), list(parts.values())


def _malformed(name: str, fields: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return why an entry of the metadata is malformed; empty if it is valid."""
    if not (isinstance(fields, dict) and fields.keys() == {"precision", "shape", "parts"}):
        return "wants exactly precision, shape and parts"
    shape, keys = fields["shape"], fields["parts"]
    if not (isinstance(shape, list) and shape and all(type(d) is int and d > 0 for d in shape)):
        return f"shape {shown(shape)} is no list of sizes"
    if math.prod(shape) >= 1 << 62 or shape[-1] > LONGEST_ROW:
        return f"shape {shown(shape)} is beyond any model"
    if not (isinstance(keys, list) and keys and all(isinstance(k, str) and f"{name}.{k}" in tensors for k in keys)):
        return f"its parts {shown(keys)} are not in the file"
    return ""


def _precision(name: object, where: str) -> Precision:

    try:
        return find_precision(str(name))
    except UnknownPrecisionError as error:
        raise MissingPluginError(f"{where}: {error}; install the plugin that brings it") from error


def _fault(precision: Precision, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> str:
    """Return why parts do not match a tensor of that shape; empty if they do."""
    if precision.convention == "float" or not fits(precision, shape):
        return f"{precision.name} cannot hold rows of {shape[-1]}"
    layouts = part_layouts(precision, shape)
    if layouts is None:
        expected = math.prod(shape) * precision.bits_per_weight
        held = 8 * sum(part.nbytes for part in parts.values())
        if any(part.shape[:1] != (math.prod(shape[:-1]),) for part in parts.values()):
            return f"its parts are not in {math.prod(shape[:-1])} rows"
        return "" if held == expected else f"its parts have {held} bits, {precision.name} takes {expected}"
    if layouts.keys() != parts.keys():
        return f"{precision.name} has the parts {', '.join(layouts)}, not {', '.join(parts)}"
    for key, layout in layouts.items():
        part = parts[key]
        if part.dtype not in _dtypes(layout, precision, key):
            return f"part {key} is {part.dtype}, {precision.name} has {layout.dtype}"
        if part.shape != layout.shape:
            return f"part {key} has shape {list(part.shape)}, {precision.name} takes {list(layout.shape)}"
    return ""


def _dtypes(layout: PartLayout, precision: Precision, key: str) -> tuple[str, ...]:
    follows = precision.scale_dtype == "source" and layout.dtype == "float32"
    return ("float32", "float16", "bfloat16") if follows else (_stored(precision, key, layout.dtype),)


@attrs.frozen
class _Source:
    """Reads the parts of a quantized tensor.

    Attributes:
        parts: by the precision's own names.
        per_row: names of those whose first dimension is the rows.
        as_bits: names of those that the precision has as integers, whatever type they are stored under.
        rows: how many there are.
        sliceable: whether rows can be read without their neighbours.
    """

    parts: Mapping[str, Tensor]
    per_row: frozenset[str]
    as_bits: frozenset[str]
    rows: int
    sliceable: bool

    @classmethod
    def of(cls, precision: Precision, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> _Source:
        rows = math.prod(shape[:-1])
        layouts = part_layouts(precision, shape)
        if layouts is None:  # can only be decoded: then its rows stand alone, as in every file format
            return cls(parts, frozenset(parts), frozenset(), rows, True)
        return cls(
            parts,
            per_row=frozenset(key for key, layout in layouts.items() if layout.growth == "rows"),
            as_bits=frozenset(key for key, layout in layouts.items() if carrier(parts[key].dtype).name == layout.dtype),
            rows=rows,
            sliceable=all(layout.growth != "packed" for layout in layouts.values()),
        )

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """The parts of rows ``start:stop``."""
        return {key: self._native(key, self._values(key, start, stop)) for key in self.parts}

    def _values(self, key: str, start: int, stop: int) -> Array:
        part = self.parts[key]
        return _rows(part, start, stop) if key in self.per_row and stop - start < self.rows else part.read()

    def _native(self, key: str, values: Array) -> Array:
        """Return the part in the framework's type: ml_dtypes' if numpy has none."""
        dtype = self.parts[key].dtype
        if key in self.as_bits or carrier(dtype).name == dtype:
            return values
        return values.view(ml_dtype(dtype, f"parts of type {dtype} need a package"))


def _rows(part: Tensor, start: int, stop: int) -> Array:
    """``part[start:stop]`` along its first dimension, reading no more where it has more than one."""
    if len(part.shape) < 2:
        return part.read()[start:stop]
    inner = math.prod(part.shape[1:-1])
    return part.read_rows(start * inner, stop * inner).reshape(stop - start, *part.shape[1:])
