"""safetensors files: strict checks of the header, tensors read on demand, files written tensor by tensor.

A file holds::

    bytes          holds
    0 .. 8         n, the header's length, little-endian unsigned 64-bit
    8 .. 8+n       UTF-8 JSON, one object, from `{` to `}` and then only spaces:
                   {"__metadata__": {str: str},
                    "<name>": {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, ...}
    8+n .. end     the tensors' elements, little-endian, row after row; offsets count from 8+n

The header is refused if a key is duplicated, a dtype is unknown, a shape and its offsets disagree, or the
tensors leave a hole, overlap, or do not end with the file. Header and values are read with plain reads through one
descriptor and never mapped into memory: a file that is cut meanwhile gives an error instead of a fault, and what was
read does not stay resident. (The safetensors library maps the file to parse its header, so it is the tests' oracle and
not asked here: whatever header is accepted here, it accepts.)

Source: the safetensors project's README, section "Format"; proved against safetensors 0.8.0.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import invalid, shown, strict_json
from edgekit.files.reader import Reader
from edgekit.tensor import DTYPES, Tensor, carrier
from edgekit.typing import Array

#: safetensors' name of a dtype -> numpy's or ml_dtypes' name.
NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
CODES = {name: code for code, name in NAMES.items()}

#: A header of a hundred thousand tensors has about 16 MiB.
HEADER_LIMIT = 32 << 20
#: Tensors of one file; the largest models have some two hundred thousand, over hundreds of files.
MAX_TENSORS = 100_000
_DIMENSIONS = 32
#: JSON values of an entry: itself, its three members, a size for each dimension, two offsets; and of the metadata.
_VALUES = 16 * MAX_TENSORS


@attrs.frozen
class Entry:
    """A tensor's position in the file: `begin` and `end` are offsets in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@attrs.frozen
class Header:
    """A file's header: its tensors in the order of their data, and its metadata."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check a header.

    Raises:
        InvalidFileError: truncated, corrupt or malicious; names the file, the tensor and the offset.
        MissingFileError: it does not exist, or cannot be read.
        MemoryShortageError: it does not fit into memory.
    """
    return _header(Reader(path))


def _header(reader: Reader) -> Header:
    text = _header_text(reader)
    return _check(_parse(text, reader.path), 8 + len(text), reader.size, reader.path)


def _header_text(reader: Reader) -> bytes:
    path, size, start = reader.path, reader.size, reader.read_bytes(0, 8)
    if len(start) < 8:
        raise invalid(path, f"{size} bytes are too few for a safetensors file", 0)
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise invalid(path, f"the header claims {length:,} bytes, the file has {size - 8:,} after its length", 0)
    if length > HEADER_LIMIT:
        raise invalid(path, f"the header claims {length:,} bytes, at most {HEADER_LIMIT:,} are read", 0)
    text = reader.read_bytes(8, length)
    if len(text) < length:
        raise invalid(path, f"the header was cut to {len(text):,} of {length:,} bytes while it was read", 8)
    if not (text.startswith(b"{") and text.rstrip(b" ").endswith(b"}")):
        raise invalid(path, "the header is no JSON object from '{' to '}' followed by spaces only", 8)
    if text.count(b'"data_offsets"') > MAX_TENSORS:  # before any object is built
        raise invalid(path, f"the header has more than {MAX_TENSORS:,} tensors", 8)
    return text


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    parsed = strict_json(text, path, "the header", 8, _VALUES)
    assert isinstance(parsed, dict)  # it starts with a brace
    return parsed


def _check(parsed: dict[str, Any], start: int, size: int, path: Path) -> Header:
    metadata = parsed.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # MLX writes null
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise invalid(path, "__metadata__ is no mapping of strings to strings", 8)
    entries = sorted(
        (_entry(name, value, start, size, path) for name, value in parsed.items()),
        key=lambda entry: (entry.begin, entry.end),
    )
    position = start
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise invalid(path, f"tensor {shown(entry.name)} {fault}", entry.begin)
        position = entry.end
    if position != size:
        raise invalid(path, f"{size - position:,} bytes after the last tensor belong to none", position)
    return Header(tuple(entries), metadata)


def _entry(name: str, value: Any, start: int, size: int, path: Path) -> Entry:
    def refuse(fault: str) -> InvalidFileError:
        return invalid(path, f"tensor {shown(name)}: {fault}", 8)

    if not (isinstance(value, dict) and value.keys() == {"dtype", "shape", "data_offsets"}):
        raise refuse("wants exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not (isinstance(dtype, str) and dtype in NAMES):
        raise refuse(f"dtype {shown(dtype)} is none of {', '.join(NAMES)}")
    if not (_naturals(shape) and len(shape) <= _DIMENSIONS and math.prod(d for d in shape if d) < 1 << 62):
        raise refuse(f"shape {shown(shape)} is no list of sizes")
    if not (_naturals(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise refuse(f"data_offsets {shown(offsets)} are no begin and end")
    begin, end = start + offsets[0], start + offsets[1]
    if end > size:
        raise invalid(path, f"tensor {shown(name)} ends at byte {end:,} of a file of {size:,}", begin)
    nbytes = math.prod(shape) * DTYPES[NAMES[dtype]]
    if end - begin != nbytes:
        raise invalid(
            path,
            f"tensor {shown(name)} has {end - begin:,} bytes, {dtype} of shape {shape} takes {nbytes:,}",
            begin,
        )
    return Entry(name, NAMES[dtype], tuple(shape), begin, end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def open_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors of a file, unread, in the order of their data, and the file's metadata.

    Raises:
        InvalidFileError: truncated, corrupt or malicious; names the file, the tensor and the offset.
    """
    reader = Reader(path)
    header = _header(reader)
    return {entry.name: _tensor(entry, reader) for entry in header.entries}, header.metadata


def _tensor(entry: Entry, reader: Reader) -> Tensor:
    cols = entry.shape[-1] if entry.shape else 1
    dtype = carrier(entry.dtype)
    row = cols * dtype.itemsize

    def read_rows(start: int, stop: int) -> Array:
        raw = reader.read(entry.begin + start * row, (stop - start) * row, entry.name)
        values = raw.view(dtype) if row else np.empty(0, dtype)
        return _native(values).reshape(stop - start, cols)

    return Tensor(entry.name, entry.shape, entry.dtype, read_rows)


def _native(values: Array) -> Array:
    """Little-endian elements in the machine's order, or the other way round."""
    return values.byteswap() if sys.byteorder == "big" else values


@attrs.frozen
class Part:
    """An array to store: its name, its dtype by numpy's or ml_dtypes' name, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype]


def build_header(parts: Iterable[Part], metadata: Mapping[str, str], length: int | None = None) -> bytes:
    """Return the bytes before the data, for parts that are stored contiguously.

    Args:
        parts: in the order of their data.
        metadata: strings to strings.
        length: pad with spaces to this many bytes; None pads to a multiple of 8.

    Raises:
        OverflowError: the header needs more than `length` bytes.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for part in parts:
        entries[part.name] = {
            "dtype": CODES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [position, position := position + part.nbytes],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    total = -(-(8 + len(text)) // 8) * 8 if length is None else length
    if 8 + len(text) > total:
        raise OverflowError(f"a header of {8 + len(text)} bytes does not fit into {total}")
    return (total - 8).to_bytes(8, "little") + text.ljust(total - 8)


def to_bytes(array: Array) -> memoryview:
    """Return an array's elements in the file's order: little-endian, row after row; a view if possible."""
    return _native(np.ascontiguousarray(array)).reshape(-1).view(np.uint8).data


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays in memory as one file, in their order; ml_dtypes' arrays under their own types.

    Raises:
        ResourceError, LockedError: about the target, which is replaced as a whole or not at all.
    """
    from edgekit.files.atomic import AtomicFile

    parts = [Part(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    with AtomicFile(path) as file:
        file.write(build_header(parts, metadata or {}))
        for array in arrays.values():
            file.write(to_bytes(array))
        file.commit()


__all__: Sequence[str] = [
    "Entry",
    "Header",
    "Part",
    "Reader",
    "build_header",
    "open_tensors",
    "read_header",
    "to_bytes",
    "write",
]
