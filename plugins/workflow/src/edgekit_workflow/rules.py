"""The rules of `edgekit recommend`: data (``rules.toml``) that a person can read, override and test."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit_workflow.hardware import Machine
from edgekit_workflow.memory import footprints

#: What models are used for.
USES = ("chat", "embedding", "vision")
#: What matters most.
PRIORITIES = ("quality", "speed", "size")


@attrs.frozen
class Framework:
    """A framework: ``[frameworks.NAME]``.

    Attributes:
        title: its name for people.
        format, runtime: edgekit's names.
        distributions: to install for both.
        systems: on which it runs.
        uses: of `USES`.
    """

    title: str
    format: str
    runtime: str
    distributions: tuple[str, ...] = attrs.field(converter=tuple)
    systems: tuple[str, ...] = attrs.field(converter=tuple)
    uses: tuple[str, ...] = attrs.field(converter=tuple)


@attrs.frozen
class Preference:
    """An order of frameworks for some machines and uses: ``[[preferences]]``; an empty condition holds always.

    Attributes:
        name: for people.
        order: frameworks, the best first.
        reason: a sentence.
        use, system, architecture, form: one of these.
        vendor: of the processor; `gpu`: of a GPU; `any_vendor`: of either, or of an NPU.
    """

    name: str
    order: tuple[str, ...] = attrs.field(converter=tuple)
    reason: str
    use: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    system: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    architecture: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    form: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    vendor: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    gpu: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    any_vendor: tuple[str, ...] = attrs.field(default=(), converter=tuple)

    def holds(self, machine: Machine, use: str) -> bool:
        """Whether all conditions hold."""
        gpus = {device.vendor for device in machine.devices if device.kind == "gpu"}
        told = (
            (self.use, {use}),
            (self.system, {machine.system}),
            (self.architecture, {machine.architecture}),
            (self.form, {machine.form}),
            (self.vendor, {machine.vendor}),
            (self.gpu, gpus),
            (self.any_vendor, machine.vendors),
        )
        return all(not wanted or set(wanted) & given for wanted, given in told)


@attrs.frozen
class Tier:
    """A tier of precision: ``[[tiers]]``.

    Attributes:
        name: for people.
        bits: of a weight on average.
        recipes: the recipe of each framework that has one.
        reason: a sentence.
        least_parameters: weights that a model needs to bear it.
        advice: what to do with it; empty for nothing.
    """

    name: str
    bits: float
    recipes: Mapping[str, str]
    reason: str
    least_parameters: int = 0
    advice: str = ""


@attrs.frozen
class Use:
    """What a use allows: ``[uses.NAME]``.

    Attributes:
        least_bits: of a weight.
        share: of the machine's memory that a model may take.
        context: tokens, where none are given.
        reason: why fewer bits are not allowed.
    """

    least_bits: float
    share: float
    context: int
    reason: str = ""


@attrs.frozen
class Priority:
    """How tiers are chosen: ``[priorities.NAME]``.

    Attributes:
        start: the most bits that are considered.
        prefer: ``larger``: the most bits that fit; ``smaller``: the fewest of `enough` bits or more, then fewer;
            ``smallest``: the fewest.
        reason: a sentence.
        enough: bits above which more are no better (``larger``), or below which the loss grows faster (``smaller``).
    """

    start: float
    prefer: str = attrs.field(validator=attrs.validators.in_(("larger", "smaller", "smallest")))
    reason: str = ""
    enough: float = 4.0


@attrs.frozen
class Rules:
    """All rules; see ``rules.toml``."""

    frameworks: Mapping[str, Framework]
    preferences: Sequence[Preference]
    tiers: Sequence[Tier]
    uses: Mapping[str, Use]
    priorities: Mapping[str, Priority]
    accelerator_share: float

    def preference(self, machine: Machine, use: str) -> Preference:
        """Return the first preference whose conditions hold.

        Raises:
            InvalidFileError: none does; the last one should have no condition but the use.
        """
        for preference in self.preferences:
            if preference.holds(machine, use):
                return preference
        raise InvalidFileError(f"the rules have no preference for {use} on {machine.name}; end them with one for all")


@functools.cache
def default_rules() -> Rules:
    """Return the plugin's rules."""
    return rules_of(resources.files("edgekit_workflow").joinpath("rules.toml").read_text("utf-8"), "rules.toml")


def read_rules(path: str) -> Rules:
    """Read rules from a file; raises as `rules_of`.

    Raises:
        MissingFileError: it cannot be read.
    """
    try:
        return rules_of(Path(path).read_text("utf-8"), path)
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}); give a TOML file of rules") from error


def rules_of(text: str, where: str) -> Rules:
    """Return the rules that a TOML text has.

    Args:
        text: of the form of ``rules.toml``.
        where: the file, for messages.

    Raises:
        InvalidFileError: no TOML, an unknown or missing key, or a framework that no table describes.
    """
    try:
        data: dict[str, Any] = tomllib.loads(text)
        rules = Rules(
            frameworks={name: Framework(**fields) for name, fields in data.pop("frameworks").items()},
            preferences=[Preference(**fields) for fields in data.pop("preferences")],
            tiers=[Tier(**fields) for fields in data.pop("tiers")],
            uses={name: Use(**fields) for name, fields in data.pop("uses").items()},
            priorities={name: Priority(**fields) for name, fields in data.pop("priorities").items()},
            accelerator_share=data.pop("accelerators")["share"],
        )
    except (tomllib.TOMLDecodeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise InvalidFileError(f"{where}: not rules of edgekit recommend ({error}); start from rules.toml") from error
    _check(rules, data, where)
    return rules


def _check(rules: Rules, left: Mapping[str, object], where: str) -> None:
    if left:
        raise InvalidFileError(f"{where}: unknown {', '.join(sorted(left))}; see rules.toml")
    used = {name for preference in rules.preferences for name in preference.order}
    used |= {name for tier in rules.tiers for name in tier.recipes}
    if unknown := sorted(used - rules.frameworks.keys()):
        raise InvalidFileError(f"{where}: no [frameworks.{unknown[0]}]; there are {', '.join(rules.frameworks)}")
    runtimes = {framework.runtime for framework in rules.frameworks.values()}
    if unknown := sorted(runtimes - footprints().keys()):
        raise InvalidFileError(f"{where}: runtime {unknown[0]!r}; known are {', '.join(footprints())}")
    if lacking := sorted(({*USES} - rules.uses.keys()) | ({*PRIORITIES} - rules.priorities.keys())):
        raise InvalidFileError(f"{where}: it lacks {', '.join(lacking)}")


__all__ = [
    "PRIORITIES",
    "USES",
    "Framework",
    "Preference",
    "Priority",
    "Rules",
    "Tier",
    "Use",
    "default_rules",
    "read_rules",
    "rules_of",
]
