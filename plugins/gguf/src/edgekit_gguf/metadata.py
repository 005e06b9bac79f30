"""GGUF metadata: a mapping of keys to typed values, and its bytes.

| item   | bytes                                                    |
|--------|----------------------------------------------------------|
| pair   | key (string), type (u32), value                          |
| number | little-endian, 1 to 8 bytes; bool one byte, 0 or 1       |
| string | length (u64), UTF-8                                      |
| array  | type of the items (u32), count (u64), the items          |

Source: the GGUF specification in ggml's repository (``docs/gguf.md``), versions 2 and 3. Strings that are not
UTF-8 (llama.cpp checks none) are kept with surrogate escapes, so that they are written unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit_gguf.types import DTYPES, ValueType


@attrs.frozen
class Value:
    """A metadata value with its type.

    Attributes:
        type: of the value.
        data: a number, a bool, a str; of an array the tuple of its items (in an array of arrays `Value`s).
        element: type of an array's items.
    """

    type: ValueType
    data: Any
    element: ValueType | None = None

    @property
    def plain(self) -> Any:
        """The value in Python's types: numbers, bool, str, and tuples of them."""
        if self.element is ValueType.ARRAY:
            return tuple(item.plain for item in self.data)
        return self.data


@attrs.frozen(eq=False)
class Metadata(Mapping[str, Any]):
    """A mapping of keys to plain values, in the file's order; `typed` has the types."""

    typed: Mapping[str, Value]

    def __getitem__(self, key: str) -> Any:
        return self.typed[key].plain

    def __iter__(self) -> Iterator[str]:
        return iter(self.typed)

    def __len__(self) -> int:
        return len(self.typed)

    def without(self, *keys: str) -> dict[str, Value]:
        """Return the typed values without some keys."""
        return {key: value for key, value in self.typed.items() if key not in keys}


def u32(number: int) -> Value:
    """Return an unsigned 32-bit integer, which llama.cpp requires for every count."""
    return Value(ValueType.UINT32, int(number))


def f32(number: float) -> Value:
    """Return a 32-bit float, rounded so that it compares equal when it is read."""
    return Value(ValueType.FLOAT32, float(np.float32(number)))


def flag(value: bool) -> Value:
    """A boolean."""
    return Value(ValueType.BOOL, bool(value))


def text(value: str) -> Value:
    """A string."""
    return Value(ValueType.STRING, value)


def texts(values: Iterable[str]) -> Value:
    """An array of strings."""
    return Value(ValueType.ARRAY, tuple(values), ValueType.STRING)


def i32s(values: Iterable[int]) -> Value:
    """An array of signed 32-bit integers."""
    return Value(ValueType.ARRAY, tuple(int(v) for v in values), ValueType.INT32)


def f32s(values: Iterable[float]) -> Value:
    """An array of 32-bit floats."""
    return Value(ValueType.ARRAY, tuple(np.asarray(tuple(values), np.float32).tolist()), ValueType.FLOAT32)


def flags(values: Iterable[bool]) -> Value:
    """An array of bools."""
    return Value(ValueType.ARRAY, tuple(bool(v) for v in values), ValueType.BOOL)


def encode_pairs(typed: Mapping[str, Value]) -> bytes:
    """Return the bytes of the key-value section."""
    return b"".join(encode_string(k) + struct.pack("<I", v.type) + encode_value(v) for k, v in typed.items())


def encode_string(value: str) -> bytes:
    """Return a string's length and UTF-8 bytes."""
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def encode_value(value: Value) -> bytes:
    """Return the bytes of a value, without its type."""
    if value.type is ValueType.STRING:
        return encode_string(value.data)
    if value.type is not ValueType.ARRAY:
        return np.asarray(value.data, DTYPES[value.type]).tobytes()
    assert value.element is not None
    return struct.pack("<IQ", value.element, len(value.data)) + _encode_items(value.element, value.data)


def _encode_items(element: ValueType, items: tuple[Any, ...]) -> bytes:
    if element is ValueType.STRING:
        return b"".join(map(encode_string, items))
    if element is ValueType.ARRAY:
        return b"".join(map(encode_value, items))
    return np.asarray(items, DTYPES[element]).tobytes()


__all__ = [
    "Metadata",
    "Value",
    "encode_pairs",
    "encode_string",
    "encode_value",
    "f32",
    "f32s",
    "flag",
    "flags",
    "i32s",
    "text",
    "texts",
    "u32",
]
