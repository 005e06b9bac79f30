"""Turns NNCF's errors into edgekit's."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs

from edgekit.errors import EdgekitError, PluginError, UnsupportedModelError, UsageError
from edgekit_openvino.library import nncf

#: What says that the caller's options are wrong, by the class's name.
_OPTIONS = frozenset(
    {"ParameterNotSupportedError", "ValidationError", "InvalidGroupSizeError", "UnsupportedDatasetError"}
)
_MODELS = frozenset({"UnsupportedModelError", "UnsupportedBackendError"})


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what NNCF raises inside into the fitting error; `what` it was asked to do begins the message.

    Raises:
        UsageError: options that NNCF refuses.
        UnsupportedModelError: a model that it does not take.
        PluginError: anything else; NNCF's own words and class are in the message.
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
    """The value, where it is None or allowed.

    Raises:
        UsageError: it is neither; lists what is.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{option}={value}; choose one of {', '.join(allowed)}")
    return value or ""


def known(given: Collection[str], options: type, what: str, *others: str) -> None:
    """Refuse options that are neither attributes of a class of options nor in `others`.

    Raises:
        UsageError: names the first, and what there is.
    """
    names = [*others, *(field.name for field in attrs.fields(options))]
    for name in given:
        if name not in names:
            raise UsageError(f"{what} has no option {name!r}; it has {', '.join(names)}")


def ignored_scope(given: Any) -> Any:
    """NNCF's `IgnoredScope` of names, or of a mapping with ``names``, ``patterns`` and ``types``.

    Raises:
        UsageError: something else.
    """
    scope = given if isinstance(given, Mapping) else {"names": [given] if isinstance(given, str) else list(given)}
    if not set(scope) <= {"names", "patterns", "types"}:
        raise UsageError(f"ignored has {', '.join(map(str, scope))}; it takes names, patterns and types, each a list")
    return nncf().IgnoredScope(**{key: list(values) for key, values in scope.items()})


__all__ = ["ignored_scope", "known", "one_of", "translated"]
