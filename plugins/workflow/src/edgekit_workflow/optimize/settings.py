"""What to optimize for: from a TOML file, from options, or both."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast

import attrs

from edgekit.errors import InvalidFileError, MissingPluginError, UsageError, near_names
from edgekit.files.foreign import read_toml
from edgekit.files.sizes import parse_size

Method = Literal["nearest", "feedback", "fit"]
Priority = Literal["quality", "speed", "size"]
METHODS: tuple[Method, ...] = ("nearest", "feedback", "fit")
PRIORITIES: tuple[Priority, ...] = ("quality", "speed", "size")
#: Entry points that read other files than TOML; the name is the suffix without its dot, the value a function from a
#: path to a mapping as `settings_of` takes it.
READERS = "edgekit_workflow.settings"
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|)\s*")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


@attrs.frozen
class Settings:
    """What to optimize for.

    Attributes:
        source: path of the model.
        to: the run's directory.
        budget: most bytes of an artifact on disk; None for no limit.
        time: seconds after which no further step is begun; a candidate is begun only if, by what the run's steps took,
            there will be time to measure and to gate what is made; None for no limit.
        priority: what decides among the artifacts that meet every requirement.
        texts: files to calibrate and to measure with, by category; empty to sample a text from the model itself.
        formats: to write; empty for every installed one that `candidates.toml` lists.
        recipes: to try; empty for those of `candidates.toml`.
        methods: how codes and precisions are chosen.
        allow: precisions that ``fit`` chooses from; empty for those that the format suggests.
        runtimes: to measure on; empty for the fastest of each format.
        max_kl: largest mean KL divergence from the source, in nats.
        min_top1: least share of positions with the same most likely token, 0 to 1.
        min_speed: least tokens a second.
        context: tokens of a window; None for 512, or the model's context if that is less.
        tokens: most tokens to measure quality on.
        speed: whether to measure speed and memory, each in a process of its own.
        gates: whether to pass the artifacts on the front through the gates.
        policy: a file with the limits of the gates.
    """

    source: Path
    to: Path
    budget: int | None = None
    time: float | None = None
    priority: Priority = "quality"
    texts: Mapping[str, Path] = attrs.field(factory=dict)
    formats: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    methods: tuple[Method, ...] = METHODS
    allow: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    max_kl: float | None = None
    min_top1: float | None = None
    min_speed: float | None = None
    context: int | None = None
    tokens: int = 8192
    speed: bool = True
    gates: bool = True
    policy: Path | None = None

    def __attrs_post_init__(self) -> None:
        _refuse_bad_values(self)


def parse_time(text: str | float) -> float:
    """Return the seconds of ``90``, ``90s``, ``10m`` or ``1.5h``.

    Raises:
        UsageError: the text is not a time above zero.
    """
    match = _TIME.fullmatch(str(text))
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"time {text!r:.40}; write a number and a unit, such as 90s, 10m or 1.5h")
    return seconds


def _refuse_bad_values(given: Settings) -> None:
    for name, choices in (("priority", PRIORITIES),):
        if (value := getattr(given, name)) not in choices:
            raise UsageError(f"{name} {value!r:.40}; choose {', '.join(choices)}")
    unknown = [method for method in given.methods if method not in METHODS]
    if unknown or not given.methods:
        raise UsageError(f"methods {unknown or 'without any'}; choose from {', '.join(METHODS)}")
    for name, most in (("max_kl", math.inf), ("min_top1", 1.0), ("min_speed", math.inf)):
        limit = getattr(given, name)
        if limit is not None and not 0 <= limit <= most:
            raise UsageError(f"{name} is {limit:g}; give a number from 0" + (" to 1" if most == 1 else ""))
    if given.min_speed is not None and not given.speed:
        raise UsageError(
            f"min_speed {given.min_speed:g} asks for a speed, and speed = false measures none; leave out one of the two"
        )
    if given.tokens < 16:
        raise UsageError(f"tokens is {given.tokens}; measure on 16 or more, better thousands")
    if given.methods == ("fit",) and given.budget is None:
        raise UsageError("methods fit alone, and no budget: fit chooses precisions for a size; give a budget")


_TABLES = {
    "": ("source", "to", "budget", "time", "priority"),
    "candidates": ("formats", "recipes", "methods", "allow", "runtimes"),
    "require": ("max_kl", "min_top1", "min_speed"),
    "measure": ("context", "tokens", "speed", "gates", "policy"),
}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("source", "to", "priority", "policy"), (str,)),
    **dict.fromkeys(("budget", "time"), (str, int, float)),
    **dict.fromkeys(_TABLES["candidates"], (list,)),
    **dict.fromkeys(_TABLES["require"], (int, float)),
    **dict.fromkeys(("context", "tokens"), (int,)),
    **dict.fromkeys(("speed", "gates"), (bool,)),
}
_CONVERTED: dict[str, Callable[[Any], Any]] = {"budget": parse_size, "time": parse_time}


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a settings file gives, by the names of `Settings`; paths in it are relative to its directory.

    Files with another suffix than ``.toml`` are read by an entry point of the group ``edgekit_workflow.settings`` with
    the suffix's name.

    Raises:
        MissingFileError: the file cannot be read.
        MissingPluginError: no installed distribution reads files of its suffix.
        InvalidFileError: it is not TOML, larger than 1 MiB, or has an unknown key or a value of another type.
        UsageError: a size or a time that cannot be read.
    """
    return settings_of(_parsed(path), path)


def _parsed(path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix != "toml":
        for point in entry_points(group=READERS, name=suffix):
            return cast(Mapping[str, Any], point.load()(path))
        raise MissingPluginError(
            f"{path}: no installed distribution reads .{suffix} files of settings (entry points of the group "
            f"{READERS}); write a .toml file"
        )
    return read_toml(path, "a workflow")


def settings_of(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Check parsed settings; return the arguments of `Settings`.

    Args:
        data: the tables of a settings file.
        path: the file, for messages; paths in the data are relative to its directory.

    Raises:
        InvalidFileError: an unknown key, or a value of another type.
        UsageError: a size or a time that cannot be read.
    """
    found: dict[str, Any] = {}
    tables: list[tuple[str, Mapping[str, Any]]] = [("", {k: v for k, v in data.items() if k not in {*_TABLES, "text"}})]
    tables += [(name, _table(data, name, path)) for name in _TABLES if name and name in data]
    for table, values in tables:
        for key, value in values.items():
            _refuse_unknown(key, table, path)
            found[key] = _value(key, value, path)
    if "text" in data:
        found["texts"] = {name: _beside(path, name, file) for name, file in _table(data, "text", path).items()}
    return found


def _table(data: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = data[name]
    if not isinstance(table, Mapping):
        raise InvalidFileError(f"{path}: {name} is {table!r:.40}; write a table, [{name}]")
    return table


def _refuse_unknown(key: str, table: str, path: Path) -> None:
    if key in _TABLES[table]:
        return
    known = [name for names in _TABLES.values() for name in names]
    home = next((name for name, names in _TABLES.items() if key in names), None)
    near = near_names(key, [*known, "text"])
    where = f"[{table}]" if table else "the file's top level"
    cure = (
        f"it belongs to [{home}]" if home else f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    )
    raise InvalidFileError(f"{path}: {where} has an unknown key {key!r:.60}; {cure}")


def _value(key: str, value: Any, path: Path) -> Any:
    kinds = _KINDS[key]
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if wrong or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
        wanted = "a list of texts" if list in kinds else " or ".join(kind.__name__ for kind in kinds)
        raise InvalidFileError(f"{path}: {key} is {value!r:.60}; give {wanted}")
    if key in ("source", "to", "policy"):
        return path.parent / value
    if key in _CONVERTED:
        return _CONVERTED[key](value)
    return tuple(value) if isinstance(value, list) else value


def _beside(path: Path, name: str, file: object) -> Path:
    if not isinstance(file, str):
        raise InvalidFileError(f"{path}: the text {name!r:.40} is {file!r:.40}; give the path of a text file")
    return path.parent / file


__all__ = [
    "METHODS",
    "PRIORITIES",
    "READERS",
    "Method",
    "Priority",
    "Settings",
    "parse_time",
    "read_settings",
    "settings_of",
]
