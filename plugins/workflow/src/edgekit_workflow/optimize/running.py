"""`optimize`: from a model to the best artifacts for a budget, measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

import edgekit
from edgekit.artifact import Artifact
from edgekit.pipeline import Progress
from edgekit_workflow.optimize.candidates import Candidates
from edgekit_workflow.optimize.choice import choose, refuse_unmet
from edgekit_workflow.optimize.records import RunDirectory, dumped
from edgekit_workflow.optimize.settings import Settings
from edgekit_workflow.optimize.stages import Stages, digests_of, versions
from edgekit_workflow.optimize.texts import read_texts

#: Of the layout of a run's directory; one of another number is refused.
SCHEMA = 1


@attrs.frozen(repr=False)
class Optimized:
    """The result of a run.

    Attributes:
        path: the run's directory.
        result: the content of its ``result.json``.
    """

    path: Path
    result: Mapping[str, Any]

    @property
    def chosen(self) -> Artifact:
        """The artifact that was chosen, opened."""
        records = {record["name"]: record for record in self.result["quantize"]}
        return edgekit.open(self.path / "quantize" / records[self.result["chosen"]]["file"])

    @property
    def front(self) -> tuple[str, ...]:
        """The names of the artifacts that no other beats in quality, size, memory and speed."""
        return tuple(self.result["front"])

    def __repr__(self) -> str:
        made = len(self.result["quantize"])
        return (
            f"Optimized({str(self.path)!r}, {made} artifacts, {len(self.front)} on the front, {self.result['chosen']})"
        )


def optimize(settings: Settings, *, restart: bool = False, progress: Progress | None = None) -> Optimized:
    """Make artifacts of a model in the installed formats, measure them, and choose one.

    The stages are *baseline* (the source is measured), *convert* (unquantized, in each format), *quantize* (every
    recipe and method within the budget), *accelerate* (the front of each format on its runtimes) and *validate* (the
    gates). Every step leaves its artifact and a record; a run that was interrupted goes on after its last record, and
    one with another budget, other candidates or other requirements uses the records that there are.

    Args:
        settings: of the run.
        restart: forget the records of a run in that directory that was begun otherwise.
        progress: called before each step.

    Raises:
        UsageError: the settings contradict one another, the budget is below the smallest file (the message says what
            that is), or the directory is not this run's.
        MissingPluginError: a format or a runtime that was asked for is not installed.
        ChangedSourceError: the source changed since the run was begun.
        QualityGateError: no artifact meets the requirements; the records and the result are written all the same.
        LockedError: another process works in the directory.

    Example:
        >>> done = optimize(Settings(Path("model"), Path("run"), budget=1_200_000))  # doctest: +SKIP
    """
    source = edgekit.open(settings.source)
    candidates = Candidates(source, settings)
    candidates.within()
    _refuse_runtimes(settings)
    digests = digests_of(source)
    texts = None
    if settings.texts:
        texts = read_texts(source, settings.texts, settings.context, settings.tokens, settings.to)
    head = _head(source, digests, texts.digests if texts else {}, settings)
    with RunDirectory(settings.to, source, head, restart) as run:
        texts = texts or read_texts(source, {}, settings.context, settings.tokens, settings.to)
        try:
            stages = Stages(source, settings, texts, run, candidates, digests, progress).all()
        except KeyboardInterrupt as error:
            error.add_note(f"what is measured is kept in {settings.to}; the same command goes on from there")
            raise
        result = {**stages, **choose(stages, settings), "settings": _plain(settings), "command": command_of(settings)}
        run.finish(result)
    refuse_unmet(result, stages, settings)
    return Optimized(settings.to, json.loads(dumped(result)))


def _refuse_runtimes(settings: Settings) -> None:
    """Raise if a runtime that was asked for is not installed; says which distribution has it."""
    from edgekit.plugin import manager

    for name in settings.runtimes:
        manager().find("runtimes", name)


def _head(source: Artifact, digests: Mapping[str, str], texts: Mapping[str, str], settings: Settings) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": {"path": source.path.name, "files": dict(digests)},
        "texts": dict(texts),
        "context": settings.context,
        "tokens": settings.tokens,
        "allow": list(settings.allow),
        "versions": versions(),
    }


def _plain(settings: Settings) -> dict[str, Any]:
    """Return the settings for the result, with the names of files instead of their paths."""
    values = attrs.asdict(settings, recurse=False)
    named = {key: value.name if isinstance(value, Path) else value for key, value in values.items()}
    return named | {"texts": {name: file.name for name, file in settings.texts.items()}}


def command_of(settings: Settings) -> str:
    """Return the command that makes a run again, with the names of its files."""
    words = ["edgekit", "optimize", settings.source.name, "--to", settings.to.name]
    options: dict[str, Any] = {
        "budget": settings.budget,
        "time": f"{settings.time:g}s" if settings.time else None,
        "priority": settings.priority if settings.priority != "quality" else None,
        "max-kl": settings.max_kl,
        "min-top1": settings.min_top1,
        "min-speed": settings.min_speed,
        "context": settings.context,
        "tokens": settings.tokens if settings.tokens != _DEFAULTS["tokens"] else None,
        "policy": settings.policy.name if settings.policy else None,
    }
    lists = ("formats", "recipes", "methods", "allow", "runtimes")
    options |= {name: ",".join(getattr(settings, name)) for name in lists if getattr(settings, name) != _DEFAULTS[name]}
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for category, file in settings.texts.items():
        words += ["--text", f"{category}={file.name}"]
    words += ["--no-speed"] * (not settings.speed) + ["--no-gates"] * (not settings.gates)
    return shlex.join(words)


_DEFAULTS = {field.name: field.default for field in attrs.fields(Settings)}


__all__ = ["SCHEMA", "Optimized", "command_of", "optimize"]
