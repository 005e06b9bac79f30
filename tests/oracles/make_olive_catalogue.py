"""Writes the catalogue of Olive's passes from the installed olive-ai: python tests/oracles/make_olive_catalogue.py

`edgekit_olive.catalogue` reads it, so that passes are listed and their options checked without importing Olive.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

import edgekit_olive

PATH = Path(edgekit_olive.__file__).parent / "catalogue.json"
#: The names and the formats alone, which are registered whenever the plugin is found.
NAMES = PATH.with_name("passes.json")
_NAMES = {bool: "bool", int: "int", float: "float", str: "str", list: "list", tuple: "list", set: "list", dict: "dict"}


def catalogue() -> dict[str, Any]:
    """The catalogue of the installed version: every pass with its options."""
    package = importlib.import_module("olive.package_config").OlivePackageConfig
    config = package.load_default_config()
    spec = importlib.import_module("olive.hardware").DEFAULT_CPU_ACCELERATOR
    names = json.loads(Path(package.get_default_config_path()).read_text("utf-8"))["passes"]
    version = importlib.import_module("olive.version").__version__
    return {"olive": version, "passes": {name: entry(name, config, spec) for name in sorted(names)}}


def entry(name: str, config: Any, spec: Any) -> dict[str, Any]:
    """One pass."""
    cls, record = config.import_pass_module(name), config.get_pass_module_config(name)
    everywhere = len(record.supported_providers) == len(type(record).EXECUTION_PROVIDERS)
    return {
        "module": record.module_path.rpartition(".")[0],
        "summary": first_sentence(cls),
        "providers": [] if everywhere else sorted(record.supported_providers),
        "data": record.dataset,
        "options": {key: option(value) for key, value in cls.default_config(spec).items()},
    }


def first_sentence(cls: type) -> str:
    """The first sentence of a class's docstring, or the nothing that it has."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def option(parameter: Any) -> dict[str, Any]:
    """One option: the types that it takes, or its values, its default, and what it is for."""
    values, kinds = described(parameter.type_)
    found: dict[str, Any] = {"types": sorted(set(kinds))}
    if values:
        found["values"] = values
    if parameter.required:
        found["required"] = True
    else:
        found["default"] = plain(parameter.default_value)
    return {**found, "about": " ".join((parameter.description or "").split())}


def described(kind: Any) -> tuple[list[Any], list[str]]:
    """The values of an enumeration, and the names of types; an unknown type takes anything."""
    if kind in _NAMES:
        return [], [_NAMES[kind]]
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        parts = [described(each) for each in typing.get_args(kind) if each is not type(None)]
        return [value for values, _ in parts for value in values], [name for _, names in parts for name in names]
    if origin is typing.Literal:
        return list(typing.get_args(kind)), [_NAMES[type(each)] for each in typing.get_args(kind)]
    if origin in _NAMES:
        return [], [_NAMES[origin]]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [each.value for each in kind], [_NAMES[type(each.value)] for each in kind]
    if kind is Path:
        return [], ["str"]
    if isinstance(kind, type) and hasattr(kind, "model_fields"):
        return [], ["dict"]
    return [], ["any"]


def plain(value: Any) -> Any:
    """A default as JSON has it: None where it depends on others."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return None


def text() -> str:
    """The file."""
    return json.dumps(catalogue(), indent=1, ensure_ascii=False) + "\n"


def names() -> str:
    """The file of names, from the catalogue in the package."""
    from edgekit_olive.catalogue import entries

    lines = (f" {json.dumps(name)}: {json.dumps(found.takes)}" for name, found in entries().items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text(), "utf-8")
    NAMES.write_text(names(), "utf-8")
