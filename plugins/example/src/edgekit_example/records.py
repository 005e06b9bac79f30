"""Converts attrs records to JSON and back, and checks the type of every value read."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

Record = TypeVar("Record")


def to_plain(record: Any) -> dict[str, Any]:
    """What `json` can write."""
    return attrs.asdict(record)


def from_plain(kind: type[Record], value: Any) -> Record:
    """The record again.

    Raises:
        ValueError: a field is missing, unknown or of another type; names it.
    """
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in attrs.fields_dict(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or value.keys() != hints.keys():
        raise ValueError(f"a {kind.__name__} must have the keys {', '.join(hints)}")
    return kind(**{name: _typed(value[name], hint, f"{kind.__name__}.{name}") for name, hint in hints.items()})


def _typed(value: Any, hint: Any, where: str) -> Any:
    if attrs.has(hint):
        return from_plain(hint, value)
    if get_origin(hint) in (UnionType, Union):  # of a Literal and None it is the older one
        (expected,) = (each for each in get_args(hint) if each is not NoneType)
        return None if value is None else _typed(value, expected, where)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(item, get_args(hint)[0], where) for item in value)
    if get_origin(hint) is Mapping and isinstance(value, dict):
        return {key: _typed(item, get_args(hint)[1], where) for key, item in value.items()}
    if get_origin(hint) is Literal and isinstance(value, str) and value in get_args(hint):
        return value
    if type(value) is int and isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return hint(value)
    if hint is float and type(value) in (int, float) and abs(value) < math.inf:
        return float(value)
    if type(value) is hint or hint is object:  # what a model family has of its own: the family checks it
        return value
    raise ValueError(f"{where} is {value!r:.40}")


__all__ = ["from_plain", "to_plain"]
