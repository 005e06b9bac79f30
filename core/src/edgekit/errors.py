"""Every error edgekit raises on purpose.

Each class derives from `EdgekitError` and from the builtin a caller would expect to catch, and knows
the exit code with which the command line reports it. A message says who, what came, what was allowed,
and the cure; a cure that is an option is written with `option`. This module imports nothing of edgekit's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ON_COMMAND_LINE = ContextVar("edgekit_on_command_line", default=False)


@contextmanager
def on_command_line() -> Iterator[None]:
    """Within it, `option` writes options as the command line does."""
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun, which stands in the singular for 1 alone.

    Args:
        count: how many.
        one: the noun, or a phrase, for one.
        many: for any other number; by default `one` with an s.

    Example:
        >>> counted(1, "token"), counted(2, "token"), counted(0, "matrix", "matrices")
        ('1 token', '2 tokens', '0 matrices')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def near_names(name: str, known: Iterable[str], count: int = 3, *, alike: float = 0.6) -> list[str]:
    """The known names that a name may stand for, the nearest first; case and punctuation make no difference.

    Args:
        name: as it was given.
        known: the names to choose from; of two that differ in punctuation alone the later one counts.
        count: the most names to return.
        alike: the least likeness, from 0 to 1, as `difflib.get_close_matches` measures it.

    Example:
        >>> near_names("llama.cpp", ["numpy", "llamacpp"])
        ['llamacpp']
    """
    import difflib

    folded = {_folded(each): each for each in known}
    return [folded[each] for each in difflib.get_close_matches(_folded(name), folded, count, alike)]


def _folded(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def option(name: str, value: str | bool = True) -> str:
    """An option as the reader of a message writes it.

    Args:
        name: the Python parameter's, such as ``format``; the command line has dashes for its underscores.
        value: what it is set to; True for a switch.

    Returns:
        ``--format gguf`` on the command line, ``format="gguf"`` in Python.

    Example:
        >>> option("format", "gguf"), option("allow_unquantized")
        ('format="gguf"', 'allow_unquantized=True')
    """
    if _ON_COMMAND_LINE.get():
        flag = f"--{name.replace('_', '-')}"
        return flag if value is True else f"{flag} {value}"
    return f"{name}={value}" if value is True else f'{name}="{value}"'


class EdgekitError(Exception):
    """Base of all errors of edgekit and its plugins.

    Attributes:
        public: what a client of a server may read of it: nothing of the server's files, and no advice for Python. None
            where the message is for the server's owner alone.
    """

    exit_code: int = 3

    def __init__(self, *args: object, public: str | None = None) -> None:
        super().__init__(*args)
        self.public = public


class UsageError(EdgekitError, ValueError):
    """An invalid argument or option."""

    exit_code = 2


class UnknownPrecisionError(UsageError, LookupError):
    """A precision name that no installed convention knows."""

    exit_code = 3


class UnknownRecipeError(UsageError, LookupError):
    """A recipe name that is not registered."""

    exit_code = 3


class ContextOverflowError(UsageError):
    """A prompt that, with what is to follow it, is longer than the model's context."""


class ShapeError(UsageError):
    """An array whose shape the precision cannot hold: 0-d, empty, or rows that no block divides."""


class InvalidFileError(EdgekitError, ValueError):
    """A file that is truncated, corrupt or hostile. The message names file, tensor and offset."""


class ChangedSourceError(InvalidFileError):
    """A file that was changed, replaced or deleted while it was read; the target stays as it was."""


class MissingFileError(EdgekitError, FileNotFoundError):
    """A file that has to be there is not."""


class UnsupportedModelError(EdgekitError, ValueError):
    """An unsupported model family, tokenizer or feature; raised before any tensor is read."""


class NonFiniteError(EdgekitError, ValueError):
    """A NaN or an infinity in the input. The message names the tensor and the index."""


class ScaleOverflowError(EdgekitError, OverflowError):
    """Values so large that the format's scale overflows the type that stores it."""


class InexactError(EdgekitError, ValueError):
    """A transcoding that would lose information, refused unless requested."""


class PluginError(EdgekitError, RuntimeError):
    """A plugin is broken, refused, or clashes with another one."""

    exit_code = 4


class MissingPluginError(PluginError, ImportError):
    """The request requires a plugin, or an optional package, that is not installed."""


class ResourceError(EdgekitError, OSError):
    """Disk, memory or permissions ran out."""

    exit_code = 5


class MemoryShortageError(ResourceError, MemoryError):
    """Memory ran out. The message states what needed it, and how many bytes were requested."""


class LockedError(EdgekitError, BlockingIOError):
    """Another process is writing the same target."""

    exit_code = 6


class QualityGateError(EdgekitError, AssertionError):
    """The artifact is valid, but its measured quality is below what was demanded."""

    exit_code = 7


__all__ = [
    "ChangedSourceError",
    "ContextOverflowError",
    "EdgekitError",
    "InexactError",
    "InvalidFileError",
    "LockedError",
    "MemoryShortageError",
    "MissingFileError",
    "MissingPluginError",
    "NonFiniteError",
    "PluginError",
    "QualityGateError",
    "ResourceError",
    "ScaleOverflowError",
    "ShapeError",
    "UnknownPrecisionError",
    "UnknownRecipeError",
    "UnsupportedModelError",
    "UsageError",
    "counted",
    "near_names",
    "on_command_line",
    "option",
]
