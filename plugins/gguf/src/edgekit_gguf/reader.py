"""A strict reader of GGUF versions 2 and 3.

| section | content                                                                                    |
|---------|--------------------------------------------------------------------------------------------|
| header  | ``GGUF``, version (u32), tensors (u64), pairs (u64)                                        |
| pairs   | metadata, see `edgekit_gguf.metadata`                                                      |
| infos   | per tensor: name (string), dimensions (u32), innermost first (u64 each), type (u32), offset (u64) |
| data    | from the next multiple of ``general.alignment`` (32); offsets count from here and are multiples of it |

Source: the GGUF specification in ggml's repository (``docs/gguf.md``), and llama.cpp's checks.

Files are untrusted: every count, length, offset and product of dimensions is checked against the rest of the file and
against the limits below before memory of that size is allocated. The file is not memory-mapped: the header is read
piece by piece, up to its end, and tensors are read at their offsets on demand. So memory holds only what is used, and
truncating the file while it is open causes an error instead of ending the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import attrs
import numpy as np

from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, ResourceError
from edgekit.files.foreign import shown
from edgekit.files.memory import shortage
from edgekit.files.reader import Reader
from edgekit.precision import find_precision
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.typing import U8
from edgekit_gguf.metadata import Metadata, Value
from edgekit_gguf.types import ALIGNMENT, DTYPES, MAGIC, READABLE, RETIRED, TENSOR_TYPES, TensorType, ValueType

#: Largest depth of nested arrays; llama.cpp supports none, the specification has no limit.
MAX_DEPTH = 4
MAX_DIMENSIONS = 4
MAX_NAME = 65535
#: Largest number of tensors in a model, in all its files; large models have a few thousand, with stacked experts.
MAX_TENSORS = 1 << 16
#: Largest number of metadata pairs in a file; models have less than a hundred.
MAX_PAIRS = 1 << 16
#: Largest size of everything before the data, in bytes; 262,144 tokens with 514,906 merges take 17 MB.
MAX_HEADER = 128 << 20
#: Largest numbers of strings, numbers, and arrays in all arrays of a file; those tokens and merges are 777,050 strings.
MAX_STRINGS, MAX_NUMBERS, MAX_ARRAYS = 1 << 21, 1 << 22, 1 << 16
# Smallest sizes of a pair and of a tensor info in bytes; they bound the counts that a file can have.
_MIN_PAIR = 8 + 1 + 4 + 1
_MIN_INFO = 8 + 1 + 4 + 4 + 8
#: Bytes of the first read of a file; each further read doubles the bytes in memory.
_FIRST = 1 << 16
_AGAIN = "get the file again"


@attrs.frozen
class TensorInfo:
    """A tensor's name, type and position: `shape` is outermost first, `start` is the offset in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    start: int

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor in the file."""
        return math.prod(self.shape) // self.type.block * self.type.size

    @property
    def row_nbytes(self) -> int:
        """The bytes of a row."""
        return (self.shape[-1] if self.shape else 1) // self.type.block * self.type.size


@attrs.frozen(eq=False)
class GgufFile:
    """The parsed header of a file, and the reader of its bytes."""

    path: Path
    version: int
    metadata: Metadata
    infos: tuple[TensorInfo, ...]
    reader: Reader = attrs.field(repr=False)

    def tensors(self) -> dict[str, AnyTensor]:
        """The tensors by name, in the order of the file; values are read on demand."""
        return {info.name: _tensor(info, self.reader) for info in self.infos}


def read(path: Path) -> GgufFile:
    """Read everything except the tensors' values.

    Raises:
        InvalidFileError: the file is truncated or malformed; names file, key or tensor, byte offset and cure.
        MissingFileError: the file does not exist.
        ResourceError: the file cannot be read.
    """
    reader = _open(path)
    try:
        return _read(Cursor(path, reader, reader.size), reader)
    except MemoryError as error:
        if isinstance(error, EdgekitError):
            raise
        raise shortage(f"{path}: reading its header", reader.size, least=True) from error


def _read(cursor: Cursor, reader: Reader) -> GgufFile:
    version, tensors, pairs = _header(cursor)
    metadata = Metadata(dict(_pairs(cursor, pairs)))
    alignment = _alignment(cursor, metadata)
    infos = _infos(cursor, tensors)
    start = -(-cursor.offset // alignment) * alignment
    return GgufFile(cursor.path, version, metadata, _placed(cursor, infos, start, alignment), reader)


def _open(path: Path) -> Reader:
    try:
        reader = Reader(path)
    except MissingFileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise MissingFileError(f"{path}: no such file") from error
        reason = getattr(error.__cause__, "strerror", "")
        raise ResourceError(f"{path}: cannot be read ({reason}); check its permissions") from error
    if not reader.size:
        raise InvalidFileError(f"{path}: the file is empty; {_AGAIN}")
    return reader


@attrs.define
class Cursor:
    """Reads a file's header from start to end, never beyond the end of the file.

    Attributes:
        reader: the file's reader.
        size: the file's size in bytes.
        data: the first bytes of the file, as many as have been needed so far.
        strings, numbers, arrays: how many more of them the file's arrays may hold.
    """

    path: Path
    reader: Reader
    size: int
    data: bytes = b""
    offset: int = 0
    context: str = "the header"
    strings: int = MAX_STRINGS
    numbers: int = MAX_NUMBERS
    arrays: int = MAX_ARRAYS

    @property
    def left(self) -> int:
        """The number of bytes between the position and the end."""
        return self.size - self.offset

    def fail(self, problem: str, cure: str = _AGAIN) -> NoReturn:
        """Raise `InvalidFileError` with the position."""
        raise InvalidFileError(f"{self.path}: {self.context}: {problem} (at byte {self.offset}); {cure}")

    def need(self, nbytes: int, what: str) -> None:
        """Raise `InvalidFileError` if fewer than `nbytes` bytes are left."""
        if nbytes > self.left:
            self.fail(f"{what} of {nbytes} bytes, but only {self.left} are left in the file")

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next `nbytes` bytes."""
        start, stop = self.offset, self.offset + nbytes
        if stop > len(self.data):
            self.need(nbytes, what)
            self.hold(stop)
        self.offset = stop
        return self.data[start:stop]

    def hold(self, stop: int) -> None:
        """Read the file into memory at least up to the offset `stop`."""
        if stop > MAX_HEADER:
            self.fail(f"the header takes more than {MAX_HEADER} bytes", "this is not the file of a model")
        length = min(self.size, MAX_HEADER, max(stop, _FIRST, 2 * len(self.data)))
        self.data += self.reader.read_bytes(len(self.data), length - len(self.data))
        if len(self.data) < stop:
            self.fail(f"the file was cut to {len(self.data)} bytes while it was read")

    def u32(self, what: str) -> int:
        """Return the next four bytes as an unsigned integer."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """Return the next eight bytes as an unsigned integer."""
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> bytes:
        """Read a length, and return that many bytes."""
        return self.take(self.u64(f"length of {what}"), what)

    def name(self, what: str) -> str:
        """Return a key or a tensor's name; it must be UTF-8, not empty, and of limited length."""
        length = self.u64(f"length of {what}")
        if not 0 < length <= MAX_NAME:
            self.fail(f"{what} has {length} bytes; 1 to {MAX_NAME} are allowed")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} {data[:64]!r} is not UTF-8")


def _header(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "magic")
    if magic != MAGIC:
        cursor.fail(f"it begins with {magic!r}, not {MAGIC!r}", "this is not a GGUF file")
    version = cursor.u32("version")
    if version & 0xFFFF == 0 and version:
        cursor.fail("the file is big-endian", "convert it with gguf-py's gguf-convert-endian FILE little")
    if version not in READABLE:
        cure = "convert it with an old llama.cpp" if version == 1 else "upgrade edgekit-gguf"
        cursor.fail(f"GGUF version {version}; versions 2 and 3 are read", cure)
    tensors, pairs = cursor.u64("number of tensors"), cursor.u64("number of pairs")
    cursor.need(pairs * _MIN_PAIR, f"{pairs} metadata pairs")
    cursor.need(tensors * _MIN_INFO, f"{tensors} tensors")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        cursor.fail(
            f"{tensors} tensors and {pairs} metadata pairs; at most {MAX_TENSORS} and {MAX_PAIRS} are read",
            "this is not the file of a model",
        )
    return version, tensors, pairs


def _pairs(cursor: Cursor, count: int) -> Iterator[tuple[str, Value]]:
    seen: set[str] = set()
    for index in range(count):
        cursor.context = f"metadata pair {index}"
        key = cursor.name("key")
        cursor.context = f"key {shown(key)}"
        if key in seen:
            cursor.fail("the key is there twice")
        seen.add(key)
        yield key, _value(cursor, _value_type(cursor), 0)


def _value_type(cursor: Cursor) -> ValueType:
    number = cursor.u32("type")
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"unknown value type {number}")


def _value(cursor: Cursor, kind: ValueType, depth: int) -> Value:
    if kind is ValueType.ARRAY:
        return _array(cursor, depth + 1)
    if kind is ValueType.STRING:
        return Value(kind, cursor.string("string").decode("utf-8", "surrogateescape"))
    return Value(kind, _numbers(cursor, kind, 1)[0])


def _array(cursor: Cursor, depth: int) -> Value:
    if depth > MAX_DEPTH:
        cursor.fail(f"arrays nested more than {MAX_DEPTH} deep")
    element = _value_type(cursor)
    count = cursor.u64("array length")
    if element is ValueType.STRING:
        return Value(ValueType.ARRAY, tuple(_strings(cursor, count)), element)
    if element is ValueType.ARRAY:
        cursor.need(12 * count, f"array of {count} arrays")
        cursor.arrays = _fewer(cursor, cursor.arrays, count, MAX_ARRAYS, "arrays in arrays")
        return Value(ValueType.ARRAY, tuple(_array(cursor, depth + 1) for _ in range(count)), element)
    return Value(ValueType.ARRAY, tuple(_numbers(cursor, element, count)), element)


def _fewer(cursor: Cursor, left: int, count: int, most: int, what: str) -> int:
    """Return the number of array items that are still allowed after `count` more; raise if there are too many."""
    if count > left:
        cursor.fail(f"{count} more items; arrays of a file may hold {most} {what}", "this is not the file of a model")
    return left - count


def _strings(cursor: Cursor, count: int) -> Iterator[str]:
    """Yield the strings of an array; written for speed, since vocabularies have hundreds of thousands."""
    cursor.need(8 * count, f"array of {count} strings")
    cursor.strings = _fewer(cursor, cursor.strings, count, MAX_STRINGS, "strings")
    data, offset = cursor.data, cursor.offset
    for _ in range(count):
        start = offset + 8
        stop = start + int.from_bytes(data[offset:start], "little")
        if stop > len(data) or start > len(data):
            cursor.offset = offset
            text, data, offset = cursor.string("string"), cursor.data, cursor.offset  # reads on, or raises
        else:
            text, offset = data[start:stop], stop
        yield text.decode("utf-8", "surrogateescape")
    cursor.offset = offset


def _numbers(cursor: Cursor, kind: ValueType, count: int) -> list[Any]:
    dtype = DTYPES[kind]
    cursor.need(count * dtype.itemsize, f"{count} values of type {kind.name.lower()}")
    cursor.numbers = _fewer(cursor, cursor.numbers, count, MAX_NUMBERS, "numbers")
    values = np.frombuffer(cursor.take(count * dtype.itemsize, "values"), dtype)
    if kind is ValueType.BOOL:
        if count and values.max() > 1:
            cursor.fail(f"a bool of value {values.max()}; only 0 and 1 are allowed")
        values = values.astype(bool)
    numbers: list[Any] = values.tolist()
    return numbers


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    cursor.context = "key 'general.alignment'"
    value = metadata.typed.get("general.alignment", Value(ValueType.UINT32, ALIGNMENT))
    if value.type is not ValueType.UINT32 or value.data.bit_count() != 1:
        cursor.fail(f"{shown(value.data)} of type {value.type.name.lower()}; a uint32 power of two is allowed")
    return int(value.data)


def _infos(cursor: Cursor, count: int) -> list[TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    for index in range(count):
        cursor.context = f"tensor {index}"
        name = cursor.name("name")
        cursor.context = f"tensor {shown(name)}"
        if name in infos:
            cursor.fail("the name is there twice")
        shape = _shape(cursor)
        infos[name] = TensorInfo(name, shape, _tensor_type(cursor, shape), cursor.u64("offset"))
    return list(infos.values())


def _shape(cursor: Cursor) -> tuple[int, ...]:
    dimensions = cursor.u32("number of dimensions")
    if dimensions > MAX_DIMENSIONS:
        cursor.fail(f"{dimensions} dimensions; at most {MAX_DIMENSIONS} are allowed")
    shape = tuple(cursor.u64("dimension") for _ in range(dimensions))[::-1]
    # Python's integers do not wrap around, so that `_placed` sees and refuses products that exceed the file.
    if 0 in shape:
        cursor.fail(f"shape {list(shape)} has a dimension of 0")
    return shape


def _tensor_type(cursor: Cursor, shape: tuple[int, ...]) -> TensorType:
    number = cursor.u32("type")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        known = RETIRED.get(number, "which this edgekit-gguf does not know: upgrade it")
        cursor.fail(f"tensor type {number}, {known}", "use another file of the model")
    if (shape[-1] if shape else 1) % kind.block:
        cursor.fail(f"{kind.name} needs rows of a multiple of {kind.block}, its shape is {list(shape)}")
    return kind


def _placed(cursor: Cursor, infos: list[TensorInfo], start: int, alignment: int) -> tuple[TensorInfo, ...]:
    """Return the infos with checked offsets, counted from the beginning of the file."""
    placed = tuple(_place(cursor, info, start, alignment) for info in infos)
    for before, after in pairwise(sorted(placed, key=lambda info: info.start)):
        if before.start + before.nbytes > after.start:
            cursor.context, cursor.offset = f"tensor {shown(after.name)}", after.start
            cursor.fail(f"it overlaps tensor {shown(before.name)}")
    return placed


def _place(cursor: Cursor, info: TensorInfo, start: int, alignment: int) -> TensorInfo:
    begin, nbytes = start + info.start, info.nbytes
    if info.start % alignment or begin + nbytes > cursor.size:
        cursor.context, cursor.offset = f"tensor {shown(info.name)}", begin
        if info.start % alignment:
            cursor.fail(f"offset {info.start} is not a multiple of the alignment, {alignment}")
        kind, left = info.type.name, max(0, cursor.left)
        cursor.fail(f"its {nbytes} bytes of {kind} end beyond the file, which has {left} left here")
    return TensorInfo(info.name, info.shape, info.type, begin)


def _tensor(info: TensorInfo, reader: Reader) -> AnyTensor:
    rows = _row_bytes(info, reader)
    if info.type.dtype:
        dtype = np.dtype(_PLAIN[info.type.name])
        return Tensor(info.name, info.shape, info.type.dtype, lambda start, stop: rows(start, stop).view(dtype))
    return EncodedTensor(
        info.name,
        info.shape,
        find_precision(info.type.precision),
        info.nbytes,
        lambda start, stop: {"blocks": rows(start, stop)},
    )


#: Little-endian numpy dtypes of the plain types.
_PLAIN = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F64": "<f8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}


def _row_bytes(info: TensorInfo, reader: Reader) -> Callable[[int, int], U8]:
    size = info.row_nbytes

    def rows(start: int, stop: int) -> U8:
        return reader.read(info.start + start * size, (stop - start) * size, info.name).reshape(stop - start, size)

    return rows


__all__ = [
    "MAX_ARRAYS",
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_HEADER",
    "MAX_NAME",
    "MAX_NUMBERS",
    "MAX_PAIRS",
    "MAX_STRINGS",
    "MAX_TENSORS",
    "Cursor",
    "GgufFile",
    "TensorInfo",
    "read",
]
