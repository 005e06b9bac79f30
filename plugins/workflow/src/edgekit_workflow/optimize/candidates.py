"""What is tried: formats, recipes and methods, from a table that people can read and override."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import attrs

from edgekit.artifact import Artifact, Format, Layout, Sizes
from edgekit.errors import EdgekitError, MissingPluginError, UnknownRecipeError, UsageError
from edgekit.pipeline import find_recipe, make_plan
from edgekit.plugin import manager
from edgekit_workflow.optimize.settings import METHODS, Method, Settings


@attrs.frozen
class Candidate:
    """One artifact to make.

    Attributes:
        format: to write.
        recipe: its name, or ``fit`` with the budget.
        method: how codes and precisions are chosen.
        suffix: of the file; empty for a directory.
        nbytes: that the format's writer will write, manifest left out; None if it does not say.
    """

    format: str
    recipe: str
    method: Method
    suffix: str = ""
    nbytes: int | None = None

    @property
    def name(self) -> str:
        """The name of its file, without the suffix; unique within a run."""
        end = {"nearest": "", "feedback": "-feedback", "fit": ""}[self.method]
        return f"{self.format}-{self.recipe.replace(':', '-')}{end}"


def table() -> dict[str, dict[str, Any]]:
    """Return the table of formats, as `candidates.toml` has it."""
    text = resources.files("edgekit_workflow.optimize").joinpath("candidates.toml").read_text("utf-8")
    return tomllib.loads(text)


class Candidates:
    """The candidates of a run, with the sizes that are known before anything is written.

    Args:
        source: the model.
        settings: of the run.

    Raises:
        MissingPluginError: a format that was asked for is not installed; says which distribution has it.
        UsageError: the settings contradict one another, or the budget is below the smallest file.
    """

    def __init__(self, source: Artifact, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self.table = table()
        self.formats = self._formats()
        #: Why a format or a recipe is left out, by its name.
        self.left_out: dict[str, str] = {}
        self._layouts: dict[str, Layout | None] = {}
        self._sizes: dict[str, Sizes | None] = {}
        self.all = tuple(self._sized())
        self._refuse_none()

    def suffix(self, format_name: str) -> str:
        """The suffix of a format's files; empty for a directory."""
        return str(self.table.get(format_name, {}).get("suffix", ""))

    def within(self) -> tuple[Candidate, ...]:
        """The candidates in the order in which they are tried: round robin over formats, the cheap methods first.

        Those larger than the budget are left out, and `left_out` says so.

        Raises:
            UsageError: the budget is below the smallest file.
        """
        budget = self.settings.budget
        fitting = [c for c in self.all if budget is None or c.nbytes is None or c.nbytes <= budget]
        for candidate in self.all:
            if candidate not in fitting:
                assert candidate.nbytes is not None
                self.left_out[candidate.name] = f"{candidate.nbytes:,} bytes, above the budget of {budget:,}"
        if not fitting:
            self._refuse_budget()
        kinds = [[c for c in fitting if c.method == method] for method in METHODS]
        return tuple(candidate for kind in kinds for candidate in _round_robin(kind))

    def layout(self, format_name: str) -> Layout | None:
        """Return what a format will store; None if it cannot hold the model, and `left_out` says why."""
        if format_name not in self._layouts:
            chosen: Format = manager().load("formats", format_name)
            try:
                self._layouts[format_name] = chosen.layout(self.source)
            except EdgekitError as error:
                self._layouts[format_name] = None
                self.left_out[format_name] = str(error)
        return self._layouts[format_name]

    def _formats(self) -> tuple[str, ...]:
        installed = {r.name for r in manager().all("formats")}
        for name in self.settings.formats:
            if name not in installed:
                manager().find("formats", name)  # raises, with the distribution to install
            if name not in self.table and not self.settings.recipes:
                raise UsageError(f"format {name} has no recipes in the table of candidates; name some as recipes")
        return self.settings.formats or tuple(name for name in self.table if name in installed)

    def _sized(self) -> Iterator[Candidate]:
        for candidate in self._named():
            if self.layout(candidate.format) is None:
                continue
            try:
                yield attrs.evolve(candidate, nbytes=self._nbytes(candidate))
            except EdgekitError as error:
                self.left_out[candidate.name] = str(error)

    def _named(self) -> Iterator[Candidate]:
        for format_name in self.formats:
            row = self.table.get(format_name, {})
            suffix = self.suffix(format_name)
            for recipe in self.settings.recipes or row.get("recipes", ()):
                if self.settings.recipes and not _takes(format_name, recipe):
                    continue
                for method in self.settings.methods:
                    rounded = method == "feedback" and (self.settings.recipes or recipe in row.get("feedback", ()))
                    if method == "nearest" or rounded:
                        yield Candidate(format_name, recipe, method, suffix)
            if "fit" in self.settings.methods and row.get("fit") and self.settings.budget is not None:
                yield Candidate(format_name, f"fit-{self.settings.budget}", "fit", suffix)

    def _nbytes(self, candidate: Candidate) -> int | None:
        if candidate.method == "fit":
            return self.settings.budget
        return self._of_recipe(candidate.format, candidate.recipe, candidate.method == "feedback")

    def _of_recipe(self, format_name: str, recipe: str, importance: bool = False) -> int | None:
        layout = self.layout(format_name)
        assert layout is not None
        plan = make_plan(find_recipe(recipe, format_name), layout, importance)
        sizes = self._sizes_of(format_name)
        if sizes is None:
            return None
        for slot, line in zip(layout.slots, plan, strict=True):
            if sizes.stored(slot, line.precision) is None:
                raise UsageError(f"{format_name} cannot store {line.name} in {line.precision.name}")
        return sizes.whole(plan)

    def _sizes_of(self, format_name: str) -> Sizes | None:
        """Return the sizes of a format, one object for all recipes: it may keep a tokenizer that it converted."""
        if format_name not in self._sizes:
            sizes = getattr(manager().load("formats", format_name), "sizes", None)
            self._sizes[format_name] = None if sizes is None else sizes(self.layout(format_name))
        return self._sizes[format_name]

    def _refuse_none(self) -> None:
        """Raise if nothing is left to try: what was asked for excludes everything."""
        if self.all:
            return
        asked = self.settings
        reasons = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
        if asked.recipes and not self.left_out:
            others = sorted({name for name in table() if any(_takes(name, recipe) for recipe in asked.recipes)})
            cure = f"they are of {', '.join(others)}" if others else "`edgekit recipes` lists those that are installed"
            raise UsageError(
                f"recipes {', '.join(asked.recipes)} and formats {', '.join(self.formats)} contradict each other: none "
                f"of these formats has any of these recipes; {cure}"
            )
        raise UsageError(f"{self.source.path}: nothing to try with these settings ({reasons or 'no method applies'})")

    def _refuse_budget(self) -> None:
        known = [c for c in self.all if c.nbytes is not None and c.method != "fit"]
        smaller = list(self._any_recipe()) if not self.settings.recipes else []
        name, nbytes = min(
            [(f"{c.format} with {c.recipe}", c.nbytes or 0) for c in known] + smaller, key=lambda pair: pair[1]
        )
        raise UsageError(
            f"a budget of {self.settings.budget:,} bytes: the smallest file of {self.source.path} in "
            f"{', '.join(self.formats)} has {nbytes:,} bytes ({name}); give at least that, or choose a smaller model"
        )

    def _any_recipe(self) -> Iterator[tuple[str, int]]:
        """Yield the size of every registered recipe of the formats, for the message alone."""
        for registration in manager().all("recipes"):
            for format_name in set(registration.options.get("formats", ())) & set(self.formats):
                try:
                    nbytes = self._of_recipe(format_name, registration.name) if self.layout(format_name) else None
                except EdgekitError:
                    continue
                if nbytes is not None:
                    yield f"{format_name} with {registration.name}", nbytes


def _takes(format_name: str, recipe: str) -> bool:
    try:
        find_recipe(recipe, format_name)
    except (UnknownRecipeError, MissingPluginError):
        return False
    except EdgekitError:
        return True
    return True


def _round_robin(candidates: list[Candidate]) -> Iterator[Candidate]:
    """Yield the first of every format, then the second of every format, and so on."""
    queues: Mapping[str, list[Candidate]] = {c.format: [] for c in candidates}
    for candidate in candidates:
        queues[candidate.format].append(candidate)
    while any(queues.values()):
        yield from (queue.pop(0) for queue in queues.values() if queue)


__all__ = ["Candidate", "Candidates", "table"]
