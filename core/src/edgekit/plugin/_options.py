"""The options that ``register`` takes in each role; any other raises an error that names what is allowed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import PluginError

_SUFFIX = re.compile(r"\.[^./\\\s]+")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _suffixes(value: object) -> str:
    if not isinstance(value, tuple | list) or not all(isinstance(each, str) for each in value):
        return 'takes a tuple of suffixes, such as (".gguf",)'
    wrong = [each for each in value if not _SUFFIX.fullmatch(each)]
    return f"{wrong[0]!r} is not a suffix; a suffix is one dot and a name, as pathlib's Path.suffix" if wrong else ""


def _names(value: object) -> str:
    if not isinstance(value, tuple | list) or not all(isinstance(each, str) for each in value):
        return 'takes a tuple of names, such as ("gguf",) or ("*",)'
    return "" if all(each.strip() for each in value) else "has an empty name"


def _speed(value: object) -> str:
    return "" if _number(value) >= 0 else "takes a number from 0 on, where the reference has 1"


def _tolerance(value: object) -> str:
    return "" if _number(value) > 0 else "takes a number above 0, in standard deviations of the logits"


def _option(value: object) -> str:
    return "" if isinstance(value, str) and value.isidentifier() else "takes the name of one of the runtime's options"


def _number(value: object) -> float:
    """The value as a float; -1 if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return -1.0
    return float(value)


def _claim(value: object) -> str:
    right = isinstance(value, str) and value.strip()
    return "" if right else 'takes "exact", or a sentence that states the bound'


#: Role -> option -> function that returns why a value is invalid, or an empty string.
_OPTIONS: dict[str, dict[str, Callable[[object], str]]] = {
    "formats": {"suffixes": _suffixes, "takes": _suffixes, "refines": _names},
    "quantizers": {"claim": _claim, "speed": _speed},
    "recipes": {"formats": _names},
    "runtimes": {"formats": _names, "speed": _speed, "tolerance": _tolerance, "parallel": _option, "adapters": _option},
    "passes": {"formats": _names},
    "kernels": {"speed": _speed},
}


def checked(role: str, what: str, target: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the validated options of one registration, lists as tuples.

    Args:
        role: ``formats``, ``quantizers``, ...
        what: the registration in words, for messages.
        target: ``"package.module:attribute"``.
        options: the keyword arguments of ``register``.

    Raises:
        PluginError: a malformed target, an unknown or missing option, or an invalid value.
    """
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise PluginError(f'{what}: a target is "package.module:attribute", not {target!r}')
    known = _OPTIONS.get(role, {})
    for name, value in options.items():
        if name not in known:
            raise PluginError(f"{what}: {_unknown(role, name, known)}")
        wrong = known[name](value)
        if wrong:
            raise PluginError(f"{what}: {name}={value!r}: {wrong}")
    if role == "quantizers" and "claim" not in options:
        raise PluginError(f'{what}: it states no claim; register it with claim="exact", or a sentence with its bound')
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _unknown(role: str, name: str, known: Mapping[str, object]) -> str:
    allowed = f"edgekit_register_{role} has {', '.join(known)}" if known else f"edgekit_register_{role} has no options"
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown option {name!r}{f', did you mean {near[0]!r}?' if near else ''}; {allowed}"
