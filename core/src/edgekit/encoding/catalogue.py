"""The catalogue: every precision, what it costs, and how it is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from edgekit.plugin.registry import manager
from edgekit.precision import Precision, catalogue, load_plugins
from edgekit.reference import reference


@attrs.frozen
class Entry:
    """One line of the catalogue.

    Attributes:
        name: of the precision.
        tier: ``ultra-low`` (1-2 bit), ``low`` (3-4), ``medium`` (5-8) or ``full``.
        bits: width of a code.
        bits_per_weight: exact, scales included; the limit for long rows where a whole row shares a scale.
        block: elements that share a scale, or ``channel`` or ``tensor``.
        symmetric: whether there is no zero point; None where the question does not apply.
        backends: who encodes it: ``reference`` and the installed plugins.
        proof: what the encoder is proved against, with the version, or how it is bounded.
        bound: the error bound in words.
    """

    name: str
    tier: str
    bits: int
    bits_per_weight: float
    block: str
    symmetric: bool | None
    backends: tuple[str, ...]
    proof: str
    bound: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return attrs.asdict(self)


def entries() -> list[Entry]:
    """Every precision of the core and of the installed plugins."""
    load_plugins()
    return [entry(precision) for precision in catalogue()]


def entry(precision: Precision) -> Entry:
    """One precision's line."""
    traits = reference(precision).traits
    native = [r.plugin for r in manager().all("quantizers") if r.name in (precision.name, precision.kind)]
    return Entry(
        name=precision.name,
        tier=str(precision.tier),
        bits=precision.bits,
        bits_per_weight=float(precision.bits_per_weight),
        block=str(precision.block or precision.granularity),
        symmetric=precision.symmetric,
        backends=("reference", *native),
        proof=_told(traits.proof, precision),
        bound=_told(traits.bound, precision),
    )


def _told(text: str | Callable[[Precision], str], precision: Precision) -> str:
    return text(precision) if callable(text) else text


__all__ = ["Entry", "entries", "entry"]
