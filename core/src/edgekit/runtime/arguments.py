"""Argument checks that all runtimes share: load options, prompts, stop texts and integers."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, cast

from edgekit.errors import UsageError

#: Type of `stop` arguments: one text, several, or None for none.
Stop = str | Sequence[str] | None
#: A text to be continued, or its token ids.
Prompt = str | Sequence[int]


def stop_texts(stop: Stop) -> tuple[str, ...]:
    """Return stop texts as a tuple: a single text is one stop text, None is none.

    Raises:
        UsageError: the value is not a text or texts.
    """
    texts: Any = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise UsageError(f"stop {stop!r:.80}; give a text, several, or None")
    stops = tuple(texts)
    for text in stops:
        if not isinstance(text, str):
            raise UsageError(f"stop text {text!r:.80} is {type(text).__name__}; a stop text is a string")
    return stops


def prompt_given(prompt: Prompt) -> str | list[int]:
    """Return a prompt: a text as it is, token ids as a list.

    Raises:
        UsageError: neither.
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes | Mapping):
        return [integer("a token id of the prompt", token, 0) for token in prompt]
    raise UsageError(f"prompt {prompt!r:.80} is {type(prompt).__name__}; give a text, or token ids")


def integer(name: str, value: object, least: int) -> int:
    """Return an integer argument; numpy's integers are accepted, True and 2.0 are not.

    Raises:
        UsageError: not an integer, or less than `least`.
    """
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(cast(SupportsIndex, value))
            if number < least:
                raise UsageError(f"{name} {number}; choose {least} or more")
            return number
    raise UsageError(f"{name} {value!r:.80}; choose an integer of at least {least}")


def adapter_paths(given: Mapping[str, str | os.PathLike[str]] | None) -> dict[str, str]:
    """Return a runtime's option ``adapters``: paths by name.

    Raises:
        UsageError: no mapping from names to paths.
    """
    named = {} if given is None else given
    if not isinstance(named, Mapping) or not all(isinstance(name, str) and name for name in named):
        raise UsageError(f"adapters is {given!r:.80}; give a mapping from names to paths")
    return {name: os.fspath(path) for name, path in named.items()}


def adapter_scales(scales: Mapping[str, float], known: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Return the adapters of a text, sorted by name, without those of scale 0.

    Args:
        scales: names, and the scale of each.
        known: names of the adapters that are loaded.

    Raises:
        UsageError: another name, or a scale that is not finite.
    """
    for name, scale in scales.items():
        if name not in known:
            there = ", ".join(map(repr, known)) or "none"
            raise UsageError(f"no adapter {name!r:.80}; there is {there}: load others with the option adapters")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise UsageError(f"adapter {name!r:.80}: scale {scale!r:.80}; choose a finite number")
    return tuple(sorted((name, float(scale)) for name, scale in scales.items() if scale))


def refuse_unknown_options(runtime: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise if a runtime does not have one of the options.

    Args:
        runtime: its name, for the message.
        given: names of the options that the caller gave.
        known: names of those that it has.

    Raises:
        UsageError: names the unknown options and the known ones.
    """
    names = list(known)
    unknown = [name for name in given if name not in names]
    if unknown:
        allowed = f"it has {', '.join(names)}" if names else "it has none"
        raise UsageError(f"runtime {runtime!r} has no option {', '.join(map(repr, unknown))}; {allowed}")


def declared_options(start: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the names of the options that a runtime's function declares; None if it takes any (``**``).

    A function that takes any checks them itself, with `refuse_unknown_options`.
    """
    _, *others = inspect.signature(start).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in others):
        return None
    return tuple(parameter.name for parameter in others if parameter.kind is not parameter.VAR_POSITIONAL)


def parse_option(
    text: str, flag: str = "--option", example: str = "context=2048", *, empty: bool = False
) -> tuple[str, Any]:
    """Split ``context=2048`` of a command line into a name and a value: JSON if it can be read as such, else text.

    Args:
        text: as it was typed.
        flag: of the command line, for the message.
        example: of a right one, for the message.
        empty: whether the value may be an empty text.

    Raises:
        UsageError: no name, or no value.
    """
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not (value or (empty and equals)):
        raise UsageError(f"{flag} {text!r}; give NAME=VALUE, such as {example}")
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    return name, value


__all__ = [
    "Prompt",
    "Stop",
    "adapter_paths",
    "adapter_scales",
    "declared_options",
    "integer",
    "parse_option",
    "prompt_given",
    "refuse_unknown_options",
    "stop_texts",
]
