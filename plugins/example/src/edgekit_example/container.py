"""The ``.ekx`` container: a header in JSON, then the parts of all tensors, one after another.

    bytes        holds
    0 .. 4       "EKX1"
    4 .. 8       n, the header's length, little-endian unsigned 32-bit
    8 .. 8+n     UTF-8 JSON: {"config": {...}, "tokenizer": {...} or null,
                 "tensors": [{"name": "blk.0.attn_q.weight", "shape": [rows, cols], "precision": "ggml:Q8_0"}, ...]}
    8+n .. end   for each tensor the parts of its precision, little-endian

Where a part lies follows from the shapes and precisions before it: the file has no offsets that could lie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.errors import InvalidFileError, MissingPluginError, UnknownPrecisionError
from edgekit.files.foreign import invalid, shown, strict_json, utf8
from edgekit.files.reader import Reader
from edgekit.formats import PartLayout, part_layouts
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tokenizer import Tokenizer
from edgekit.typing import U8, Array
from edgekit_example.records import from_plain, to_plain

MAGIC = b"EKX1"
HEADER_LIMIT = 64 << 20
LONGEST_ROW = 1 << 20


@attrs.frozen
class Place:
    """The position of a tensor: its parts follow each other from byte `begin` on."""

    name: str
    shape: tuple[int, ...]
    precision: Precision
    parts: dict[str, PartLayout]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(map(part_nbytes, self.parts.values()))


@attrs.frozen
class Header:
    """The parsed header of a file."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    places: tuple[Place, ...]


def part_nbytes(part: PartLayout) -> int:
    """Bytes of a part."""
    return math.prod(part.shape) * np.dtype(part.dtype).itemsize


def little(dtype: str) -> np.dtype[Any]:
    """The type in the file's byte order."""
    return np.dtype(dtype).newbyteorder("<")


def build_header(
    config: ModelConfig, tokenizer: Tokenizer | None, tensors: Sequence[tuple[str, tuple[int, ...], Precision]]
) -> bytes:
    """Everything before the first part."""
    fields = {
        "config": to_plain(config),
        "tokenizer": None if tokenizer is None else to_plain(tokenizer),
        "tensors": [{"name": n, "shape": s, "precision": p.name} for n, s, p in tensors],
    }
    text = utf8(json.dumps(fields, separators=(",", ":"), ensure_ascii=False), "the configuration or the tokenizer")
    return MAGIC + len(text).to_bytes(4, "little") + text


def read_header(path: Path) -> Header:
    """Read and check the header.

    Raises:
        InvalidFileError: truncated or malformed; names the file, the tensor and the offset.
        MissingFileError: it is not there, or cannot be read.
        MissingPluginError: a precision that no installed plugin has.
    """
    reader = Reader(path)
    start, text = reader.read_bytes(0, 8), b""
    if start[:4] == MAGIC and len(start) == 8:
        text = reader.read_bytes(8, _header_length(start, reader.size, path))
    if not text:
        raise invalid(path, "it does not begin as an .ekx file does", 0)
    return _parse(strict_json(text, path, "the header", 8), path, 8 + len(text), reader.size)


def _header_length(start: bytes, size: int, path: Path) -> int:
    length = int.from_bytes(start[4:], "little")
    if length > min(size - 8, HEADER_LIMIT):
        raise invalid(path, f"the header claims {length:,} bytes of a file of {size:,}", 4)
    return length


def _parse(fields: Any, path: Path, begin: int, size: int) -> Header:
    if not isinstance(fields, dict) or fields.keys() != {"config", "tokenizer", "tensors"}:
        raise invalid(path, "the header must have exactly config, tokenizer and tensors", 8)
    try:
        config = from_plain(ModelConfig, fields["config"])
        tokenizer = None if fields["tokenizer"] is None else from_plain(Tokenizer, fields["tokenizer"])
    except ValueError as error:
        raise invalid(path, f"the header: {error}", 8) from error
    places = tuple(_places(fields["tensors"], path, begin, size))
    if len({place.name for place in places}) < len(places):
        raise invalid(path, "two tensors have the same name", 8)
    return Header(config, tokenizer, places)


def _places(tensors: Any, path: Path, begin: int, size: int) -> Iterator[Place]:
    if not isinstance(tensors, list):
        raise invalid(path, "the header has no list of tensors", 8)
    for fields in tensors:
        place = _place(fields, path, begin, size)
        yield place
        begin += place.nbytes
    if begin != size:
        raise invalid(path, f"the tensors end here, the file has {size:,} bytes", begin)


def _place(fields: Any, path: Path, begin: int, size: int) -> Place:
    if not isinstance(fields, dict) or fields.keys() != {"name", "shape", "precision"}:
        raise invalid(path, "a tensor must have exactly name, shape and precision", 8)
    name, shape = fields["name"], fields["shape"]
    where = f"tensor {shown(name)}"
    if not (isinstance(name, str) and isinstance(shape, list) and all(type(d) is int and d > 0 for d in shape)):
        raise invalid(path, f"{where}: shape {shown(shape)} is not a list of sizes", 8)
    precision = _precision(fields["precision"], f"{path}: {where}")
    # Before the precision is asked for its parts: what a file cannot hold must not cost memory either.
    bits = math.prod(shape) * precision.bits_per_weight
    if not shape or shape[-1] > LONGEST_ROW or bits > 8 * (size - begin):
        raise invalid(path, f"{where} of shape {shown(shape)} does not fit the {size - begin:,} bytes left", begin)
    return Place(name, tuple(shape), precision, _parts(precision, tuple(shape), f"{path}: {where}"), begin)


def _precision(name: Any, where: str) -> Precision:
    try:
        return find_precision(str(name))
    except UnknownPrecisionError as error:
        raise MissingPluginError(f"{where}: {error}; install the plugin that brings it") from error


def _parts(precision: Precision, shape: tuple[int, ...], where: str) -> dict[str, PartLayout]:
    layouts = part_layouts(precision, shape) if fits(precision, shape) else None
    if layouts is None:
        raise InvalidFileError(f"{where}: {precision} cannot hold rows of {shape[-1]}; fetch or convert it again")
    return layouts


def read_part(raw: U8, dtype: str, shape: tuple[int, ...]) -> Array:
    """Bytes of the file as an array in the machine's own byte order."""
    return raw.view(little(dtype)).astype(np.dtype(dtype), copy=False).reshape(shape)


__all__ = [
    "HEADER_LIMIT",
    "LONGEST_ROW",
    "MAGIC",
    "Header",
    "Place",
    "build_header",
    "little",
    "part_nbytes",
    "read_header",
    "read_part",
]
