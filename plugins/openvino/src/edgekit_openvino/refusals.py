"""Converts NNCF's errors to edgekit's."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs

from edgekit.errors import EdgekitError, PluginError, UnsupportedModelError, UsageError
from edgekit_openvino.library import nncf

#: Names of NNCF's exception classes for invalid options.
_OPTIONS = frozenset(
    {"ParameterNotSupportedError", "ValidationError", "InvalidGroupSizeError", "UnsupportedDatasetError"}
)
_MODELS = frozenset({"UnsupportedModelError", "UnsupportedBackendError"})


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Convert errors that NNCF raises in the block; `what` describes the operation and begins the message.

    Raises:
        UsageError: NNCF refuses an option.
        UnsupportedModelError: NNCF does not support the model.
        PluginError: any other error; the message quotes NNCF's message and class.
    """
    try:
        yield
    except (EdgekitError, MemoryError):
        raise
    except Exception as error:
        name, message = type(error).__name__, _words(error)
        if isinstance(error, nncf().ValidationError | nncf().ParameterNotSupportedError) or name in _OPTIONS:
            raise UsageError(f"{what}: NNCF refuses: {message}") from error
        if name in _MODELS:
            raise UnsupportedModelError(f"{what}: NNCF does not take this model: {message}") from error
        raise PluginError(
            f"{what}: NNCF fails ({name}: {message}); other options, or an ignored scope, may help"
        ) from error


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:400]}..."


def one_of(option: str, value: str | None, allowed: Collection[str]) -> str:
    """Return the value if it is None or allowed.

    Raises:
        UsageError: the value is not allowed; the message lists those that are.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{option}={value}; choose one of {', '.join(allowed)}")
    return value or ""


def known(given: Collection[str], options: type, what: str, *others: str) -> None:
    """Raise an error for options that are neither attributes of a class of options nor in `others`.

    Raises:
        UsageError: an option is unknown; the message names it and the known ones.
    """
    names = [*others, *(field.name for field in attrs.fields(options))]
    for name in given:
        if name not in names:
            raise UsageError(f"{what} has no option {name!r}; it has {', '.join(names)}")


def ignored_scope(given: Any) -> Any:
    """Return NNCF's `IgnoredScope` for names, or for a mapping with ``names``, ``patterns`` and ``types``.

    Raises:
        UsageError: the argument is neither.
    """
    scope = given if isinstance(given, Mapping) else {"names": [given] if isinstance(given, str) else list(given)}
    if not set(scope) <= {"names", "patterns", "types"}:
        raise UsageError(f"ignored has {', '.join(map(str, scope))}; it takes names, patterns and types, each a list")
    return nncf().IgnoredScope(**{key: list(values) for key, values in scope.items()})


__all__ = ["ignored_scope", "known", "one_of", "translated"]
