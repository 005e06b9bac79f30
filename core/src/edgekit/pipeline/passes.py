"""Passes: whole-artifact transformations of plugins, such as pruning or graph optimization.

A pass reads one artifact and writes another; the result's manifest records what the pass measured under ``quality``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Unpack, get_args, get_origin, get_type_hints

from edgekit.artifact import Artifact, unread
from edgekit.errors import InvalidFileError, MissingPluginError, UnsupportedModelError, UsageError
from edgekit.files.guard import stamps, working
from edgekit.files.memory import enough_memory
from edgekit.pipeline._conversion import open_artifact
from edgekit.plugin._registry import Registration, manager


class Pass(Protocol):
    """Transforms an artifact as a whole; registered with ``edgekit_register_passes``.

    If an option has no default, an attribute ``trial`` holds the options with which `edgekit verify` runs the pass on a
    small model.
    """

    name: str

    def run(self, source: Artifact, to: Path, **options: Any) -> Artifact:
        """Write the changed artifact atomically and return it, opened; the source is not modified.

        Args:
            source: the artifact to change, in a format that the pass supports.
            to: the path of the result.
            options: the pass's further options.

        Returns:
            The result. Its ``manifest.quality`` maps the names of measurements to finite numbers.

        Raises:
            UnsupportedModelError: the pass does not support the source; raised before anything is written.
        """
        ...


def run_pass(
    source: Artifact | str | os.PathLike[str],
    name: str,
    *,
    to: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    notes: list[str] | None = None,
) -> Artifact:
    """Run an installed pass.

    Args:
        source: an artifact, or the path of one; or of a file that no installed format reads, where the pass takes files
            of that suffix (it is handed over as `unread`).
        name: of the pass.
        to: the path of the result.
        options: of the pass; a file that one names is a source too.
        overwrite: replace a target that edgekit did not write; one that it wrote is replaced in any case.
        notes: remarks about the run for the user are appended to it, one sentence each.

    Raises:
        MissingPluginError: no installed plugin provides a pass of that name.
        UnsupportedModelError: the pass takes artifacts of other formats.
        UsageError: the target is, holds or lies inside a source, or is something that edgekit did not write; or the
            pass has no such option.
        ChangedSourceError: the source was changed while it was read.
    """
    registration = manager().find("passes", name)
    artifact = source if isinstance(source, Artifact) else _open(Path(source), registration)
    _refuse_format(artifact, registration)
    given = dict(options or {})
    work = working(Path(to), {**artifact.reads, **stamps(files_in(given))}, overwrite, notes)
    with enough_memory(f"{artifact.path}: the pass {name!r}"), work:
        chosen: Pass = registration.load()
        refuse_options(chosen.run, f"the pass {name!r}", given)
        return chosen.run(artifact, Path(to), **given)


def files_in(options: Mapping[str, Any]) -> list[Path]:
    """Return the files that options name."""
    values = (value for value in options.values() if isinstance(value, str | os.PathLike) and value)
    return [path for path in map(Path, values) if _is_file(path)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL: the text names no file
        return False


def _open(path: Path, registration: Registration) -> Artifact:
    try:
        return open_artifact(path)
    except (InvalidFileError, MissingPluginError):
        if path.is_file() and path.suffix.lstrip(".") in registration.options.get("formats", ()):
            return unread(path)
        raise


def _refuse_format(artifact: Artifact, registration: Registration) -> None:
    taken = registration.options.get("formats", ("*",))
    if "*" not in taken and artifact.format not in taken:
        raise UnsupportedModelError(
            f"{artifact.path}: the pass {registration.name!r} takes {', '.join(taken)}, this is {artifact.format}; "
            "convert it first"
        )


def refuse_options(function: Callable[..., Any], who: str, options: Mapping[str, Any]) -> None:
    """Raise if a function has no keyword argument for one of the options.

    Further keyword arguments (``**options``) are any, or those of a `TypedDict` if they are annotated with ``Unpack``.

    Raises:
        UsageError: names the option and those that are allowed.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            further = _unpacked(function, parameter.name)
            if further is None:
                return
            known += further
    for option in options:
        if option not in known:
            raise UsageError(f"{who} has no option {option!r}; it has {', '.join(known) or 'none'}")


def _unpacked(function: Callable[..., Any], name: str) -> list[str] | None:
    """Return the keys of the `TypedDict` that a parameter ``**name: Unpack[...]`` takes; None if it takes any."""
    try:
        hint = get_type_hints(function).get(name)
    except NameError:  # of a type that is imported for checkers alone
        return None
    return list(get_args(hint)[0].__annotations__) if get_origin(hint) is Unpack else None


__all__ = ["Pass", "files_in", "refuse_options", "run_pass", "unread"]
