"""Typed access to an untrusted JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, cast

import attrs

from edgekit.errors import InvalidFileError, UnsupportedModelError

#: Fields of a configuration by name, or of a record.
Fields = dict[str, Any]


@attrs.frozen
class Section:
    """A JSON object with typed access; every error names the file and the key."""

    values: Mapping[str, Any]
    where: str

    def integer(self, key: str) -> int:
        value = self.values[key]
        if type(value) is not int or abs(value) >= 1 << 63:
            self._wrong(key, value, "an integer")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if not _is_number(value):
            self._wrong(key, value, "a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if type(value) is not bool:
            self._wrong(key, value, "true or false")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            self._wrong(key, value, "a list of finite numbers")
        return tuple(float(v) for v in value)

    def section(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            self._wrong(key, value, "an object")
        return dict(value)

    def refuse(self, key: str, value: object, allowed: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.where}: {key} is {short(value)}; edgekit knows {allowed}")

    def _wrong(self, key: str, value: object, wanted: str) -> NoReturn:
        raise InvalidFileError(f"{self.where}: {key} is {short(value)}, it has to be {wanted}; the file is damaged")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(cast(float, value)) <= 1e300  # false for NaN


def short(value: object) -> str:
    """A value as an error shows it: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
