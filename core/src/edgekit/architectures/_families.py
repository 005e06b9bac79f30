"""The families that are installed: the core's, and those of plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from edgekit.architectures._family import Family
from edgekit.errors import PluginError
from edgekit.plugin._registry import BUILT_IN, Registration, manager, skipped


class Families(Mapping[str, Family]):
    """Every family by its name, the core's first; one that a plugin brings is imported when it is looked up.

    A plugin's family that cannot be loaded is skipped with a warning while others are looked through, and raises
    `PluginError` when it is asked for by name.
    """

    def __getitem__(self, name: str) -> Family:
        registration = next((r for r in manager().all("families") if r.name == name), None)
        if registration is None:
            raise KeyError(name)
        return cast(Family, manager().load("families", name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(r.name for r in manager().all("families") if _loads(r)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return any(r.name == name for r in manager().all("families"))

    def of_model_type(self, model_type: object) -> Family | None:
        """The family of that ``model_type`` in config.json, or None; a plugin cannot claim one of the core's."""
        return next(self._named(model_type), None)

    def of_config(self, config: Mapping[str, Any]) -> Family | None:
        """The family of a config.json, or None; of several with its ``model_type`` the first that fits."""
        model_type = config.get("model_type")
        fitting = (family for family in self._named(model_type) if family.hf_fits(config))
        return next(fitting, self.of_model_type(model_type))

    def _named(self, model_type: object) -> Iterator[Family]:
        return (family for family in self.values() if model_type in family.model_types)


def _loads(registration: Registration) -> bool:
    if registration.distribution == BUILT_IN:
        return True
    try:
        manager().load("families", registration.name)
    except PluginError as error:
        skipped(registration, error)
        return False
    return True


FAMILIES = Families()

__all__ = ["FAMILIES", "Families"]
