"""What every scheme works with: the checkpoint's tensors, checked, and its quantization_config, understood in full."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NoReturn, Protocol, TypeVar

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.precision import find_precision
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import Array

CURE = "convert the full-precision model that it was made from"
#: The largest group or block; a row is never longer.
MAX_GROUP = 1 << 20
_T = TypeVar("_T")


class Scheme(Protocol):
    """A module of this package: reads what one library writes."""

    def read(self, source: Source) -> Iterator[Packed]:
        """Yield the quantized tensors of a checkpoint; reads no values but the order of columns.

        Raises:
            UnsupportedModelError: the configuration has a field, or a value, that is not understood.
            InvalidFileError: a part is missing, or has another shape or type than the scheme's.
        """
        ...


@attrs.frozen(eq=False)
class Packed:
    """A quantized tensor, and the names of the file's tensors that are its parts."""

    tensor: EncodedTensor
    parts: tuple[str, ...]


@attrs.frozen
class Fields:
    """An object of config.json, of which every field must be understood.

    Attributes:
        values: the fields.
        where: the file, for messages.
        name: of the object, for messages: ``quantization_config``, or a path below it.
    """

    values: Mapping[str, object]
    where: str
    name: str = "quantization_config"

    def only(self, known: Collection[str]) -> None:
        """Raise if there is a field that is not among the known ones and is set."""
        for key, value in self.values.items():
            if key not in known and value not in (None, False, [], {}):
                raise UnsupportedModelError(
                    f"{self.where}: {self.name} has the field {shown(key)} ({shown(value)}), which is not understood; "
                    f"known are {', '.join(sorted(known))}; {CURE}"
                )

    def choice(self, key: str, allowed: Collection[_T], default: _T) -> _T:
        """Return a field's value; raise if it is not allowed."""
        value = self.values.get(key)
        if value is None:
            return default
        for each in allowed:
            if type(value) is type(each) and value == each:
                return each
        self.refuse(key, f"read is {' or '.join(map(str, allowed))}")

    def size(self, key: str, default: int) -> int:
        """Return a size; raise if it is not a positive integer."""
        value = default if self.values.get(key) is None else self.values[key]
        if type(value) is not int or not 0 < value <= MAX_GROUP:
            self.refuse(key, "a positive integer is needed")
        return value

    def pair(self, key: str) -> tuple[int, int]:
        """Return two sizes; raise if they are not two positive integers."""
        value = self.values.get(key)
        sizes = value if isinstance(value, list) and len(value) == 2 else [0]
        if not all(type(each) is int and 0 < each <= MAX_GROUP for each in sizes):
            self.refuse(key, "two positive integers are needed")
        return sizes[0], sizes[1]

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raise the error for a field's value."""
        raise UnsupportedModelError(
            f"{self.where}: {self.name}.{key} is {shown(self.values.get(key))}; {allowed}; {CURE}"
        )


@attrs.frozen
class Source:
    """A checkpoint that a library quantized.

    Attributes:
        tensors: by name, as the files hold them.
        fields: of the quantization_config.
        where: the directory, for messages.
    """

    tensors: Mapping[str, Tensor]
    fields: Fields
    where: str

    def modules(self, ending: str) -> list[str]:
        """Return what precedes `ending` in the names of tensors, in their order."""
        return [name.removesuffix(ending) for name in self.tensors if name.endswith(ending)]

    def part(self, name: str, dtypes: Collection[str], shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a part of a quantized tensor.

        Args:
            name: of the tensor.
            dtypes: those that it may have.
            shape: what it must have; None if the caller checks it.

        Raises:
            InvalidFileError: it is missing, or of another type or shape.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise InvalidFileError(f"{self.where}: {name} is missing; the weights were saved in part, fetch them again")
        if tensor.dtype not in dtypes:
            raise InvalidFileError(
                f"{self.where}: {name} is {tensor.dtype}, {' or '.join(dtypes)} is needed; fetch the model again"
            )
        if shape is not None and tensor.shape != shape:
            raise self.mismatch(name, tensor.shape, shape)
        return tensor

    def mismatch(self, name: str, shape: tuple[int, ...], needed: object) -> InvalidFileError:
        """Return the error for a part of the wrong shape."""
        asked = list(needed) if isinstance(needed, tuple) else needed
        return InvalidFileError(
            f"{self.where}: {name} has shape {list(shape)}, {asked} is needed; the parts do not belong together, "
            "fetch the model again"
        )

    def present(self, *names: str) -> tuple[str, ...]:
        """Return those of the names that the checkpoint has."""
        return tuple(name for name in names if name in self.tensors)


def encoded(
    name: str,
    shape: tuple[int, ...],
    precision: str,
    parts: Collection[Tensor],
    read: Callable[[int, int], Mapping[str, Array]],
) -> EncodedTensor:
    """Return an encoded tensor that reads its parts when asked, row by row."""
    return EncodedTensor(name, shape, find_precision(precision), sum(part.nbytes for part in parts), read)


def granularity(group: int | None) -> str:
    """Return how a precision's name ends."""
    return "channel" if group is None else f"g{group}"


def bytes_of(words: Array) -> Array:
    """Return 32-bit words [..., n] as little-endian bytes [..., 4 n]."""
    return np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)


class Latest:
    """Keeps the last tensor that was turned, because reading some rows of a transposed one takes all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: tuple[str, Array] | None = None

    def get(self, key: str, make: Callable[[], Array]) -> Array:
        """Return what `make` returns for a key; made again only if another key was asked for since."""
        with self._lock:
            if self._held is None or self._held[0] != key:
                self._held = None  # before the next is made, so that two are never held
                self._held = key, make()
            return self._held[1]


def groups_of(cols: int, group: int | None) -> int:
    """Return how many groups a row has."""
    return 1 if group is None else -(-cols // group)


__all__ = [
    "CURE",
    "MAX_GROUP",
    "Fields",
    "Latest",
    "Packed",
    "Scheme",
    "Source",
    "bytes_of",
    "encoded",
    "granularity",
    "groups_of",
]
