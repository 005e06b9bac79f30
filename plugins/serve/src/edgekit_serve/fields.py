"""Reads the fields of a request, each with its type and range; any other field is refused by name."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from edgekit_serve.wire import ApiError, Json, refused

#: Size of a body in bytes above which it takes more than a millisecond to parse and check.
LARGE = 65_536
#: Largest number of objects and lists in a body; building, checking and freeing each holds the interpreter's lock.
MAX_CONTAINERS = 1 << 16
Item = TypeVar("Item")
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # matches at every quote: linear time


async def aside(body: bytes, work: Callable[[], Item]) -> Item:
    """Return the result of a function, called in a thread for a large body, so that other requests are served."""
    return work() if len(body) < LARGE else await asyncio.to_thread(work)


def parse(body: bytes) -> Json:
    """Return the JSON object of a body.

    Raises:
        ApiError: 400 if the body is not UTF-8 or not JSON, is not an object, has NaN or an infinity, is nested too
            deeply, or has more than `MAX_CONTAINERS` objects and lists.
    """
    if _containers(body) > MAX_CONTAINERS:
        raise refused(f"the body has more than {MAX_CONTAINERS:,} objects and lists", code="invalid_json")
    try:
        with _no_collector():
            body_object = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise refused(f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise refused(f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json") from None
    except RecursionError:
        raise refused("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # NaN, and integers of thousands of digits
        raise refused(f"the body is not JSON: {str(error)[:80]}", code="invalid_json") from None
    if not isinstance(body_object, dict):
        raise refused(f"the body is {_kind(body_object)}; it must be an object", code="invalid_json")
    return body_object


def _containers(body: bytes) -> int:
    """Return an upper bound of the objects and lists in a body; brackets in strings are excluded if necessary."""
    count = body.count(b"[") + body.count(b"{")
    if count <= MAX_CONTAINERS:
        return count
    outside = _STRINGS.sub(b"", body)
    return outside.count(b"[") + outside.count(b"{")


@contextmanager
def _no_collector() -> Iterator[None]:
    """Disable the cyclic garbage collector, which takes four times as long as parsing a body of a million lists.

    Parsing holds the interpreter's lock: 0.1 s for the worst 4 MB.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class Fields:
    """The fields of a request, read one by one; `done` refuses the rest.

    A field that is null counts as absent, as in OpenAI's API.

    Args:
        given: the fields.
        lenient: whether fields and values that are not supported are ignored.
    """

    def __init__(self, given: Json, lenient: bool = False) -> None:
        self.lenient = lenient
        self._left = {name: value for name, value in given.items() if value is not None}

    def take(self, name: str) -> Any:
        """Return a field's value, unchecked; None if it is absent."""
        return self._left.pop(name, None)

    def default(self, name: str, value: Any) -> None:
        """Set a field that is absent."""
        self._left.setdefault(name, value)

    def rename(self, newer: str, older: str) -> None:
        """Rename the field `newer` to `older`; a request may use one of the two names."""
        value = self.take(newer)
        if value is None:
            return
        other = self._left.setdefault(older, value)
        if not _equal(value, other):
            both = f"{older} is {shown(other)} and {newer} is {shown(value)}"
            raise refused(f"{both}; they mean the same: give one of them", older)

    def number(self, name: str, least: float, most: float, *, above: bool = False) -> float | None:
        """Return a number from `least` (or just above it) to `most`."""
        value = self.take(name)
        if value is None:
            return None
        right = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        if not right or (above and value == least):
            start = f"above {least:g}" if above else f"from {least:g}"
            raise refused(f"{name} is {shown(value)}; it must be a number {start} to {most:g}", name)
        return float(value)

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Return an integer from `least` to `most`."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise refused(f"{name} is {shown(value)}; it must be an integer from {least} to {most}", name)
        return value

    def integers(self, name: str, most: int, largest: int) -> list[int]:
        """Return a list of at most `most` integers from 0 to `largest`; empty if the field is absent."""
        value = self.take(name)
        right = value is None or (isinstance(value, list) and len(value) <= most)
        if not right or not all(is_id(each, largest) for each in value or ()):
            requested = f"a list of at most {most} integers from 0 to {largest}"
            raise refused(f"{name} is {shown(value)}; it must be {requested}", name)
        return list(value or ())

    def object(self, name: str) -> Json | None:
        """Return an object; None if the field is absent."""
        value = self.take(name)
        if not isinstance(value, dict | None):
            raise refused(f"{name} is {shown(value)}; it must be an object", name)
        return value

    def flag(self, name: str) -> bool:
        """Return true or false; false if the field is absent."""
        value = self.take(name)
        if not isinstance(value, bool | None):
            raise refused(f"{name} is {shown(value)}; it must be true or false", name)
        return bool(value)

    def text(self, name: str) -> str | None:
        """Return a text; None if the field is absent."""
        value = self.take(name)
        if not isinstance(value, str | None):
            raise refused(f"{name} is {shown(value)}; it must be a text", name)
        return value

    def texts(self, name: str, most: int, longest: int) -> list[str]:
        """Return one text or a list of at most `most`, each of 1 to `longest` characters."""
        value = self.take(name)
        items = [value] if isinstance(value, str) else value
        if items is None:
            return []
        right = isinstance(items, list) and len(items) <= most
        if not right or not all(isinstance(text, str) and 0 < len(text) <= longest for text in items):
            requested = f"a text or a list of at most {most}, each of 1 to {longest} characters"
            raise refused(f"{name} is {shown(value)}; it must be {requested}", name)
        return list(items)

    def only(self, name: str, *allowed: Any) -> None:
        """Raise an error if a field has a value other than the allowed ones; absence is allowed."""
        value = self.take(name)
        if value is not None and not self.lenient and not any(_equal(value, one) for one in allowed):
            choice = f"only {' or '.join(map(shown, allowed))} is" if allowed else "it is not"
            raise ApiError(400, f"{name} is {shown(value)}; {choice} supported", "unsupported_value", param=name)

    def ignore(self, names: Iterable[str]) -> None:
        """Accept and discard fields that have no effect in this server."""
        for name in names:
            self.take(name)

    def done(self) -> None:
        """Raise an error if fields are left that were not read; a lenient server ignores them."""
        if self._left and not self.lenient:
            name = next(iter(self._left))
            raise ApiError(400, f"unknown parameter {shown(name)}", "unknown_parameter", param=name[:80])


def is_id(value: Any, largest: int) -> bool:
    """Whether a value is an integer from 0 to `largest`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")


def _equal(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1.0 equals 1, but true does not."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


#: Largest number of characters of a client's value that a message quotes.
_SHOWN = 60


def shown(value: Any) -> str:
    """Return a value as JSON, truncated for a message."""
    if isinstance(value, int) and abs(value) > 10**20:
        return "a huge integer"
    text = ""
    for part in json.JSONEncoder().iterencode(value[: _SHOWN + 1] if isinstance(value, str) else value):
        text += part
        if len(text) > _SHOWN:
            return f"{text[:_SHOWN]}…"
    return text


__all__ = ["LARGE", "Fields", "aside", "is_id", "parse", "shown"]
