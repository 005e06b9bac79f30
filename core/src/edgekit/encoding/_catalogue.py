"""The catalogue: every precision, its size, and how it is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from edgekit.plugin._registry import manager
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
        symmetric: whether it has no zero point; None if that does not apply.
        backends: that encode it: ``reference`` and installed plugins.
        proof: the implementation and version that the encoder is tested against, or how its error is bounded.
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
        """Return the entry as plain data for JSON."""
        return attrs.asdict(self)


def entries() -> list[Entry]:
    """Return the entry of every precision of the core and the installed plugins."""
    load_plugins()
    return [entry(precision) for precision in catalogue()]


def entry(precision: Precision) -> Entry:
    """Return the catalogue entry of a precision."""
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
        proof=_in_words(traits.proof, precision),
        bound=_in_words(traits.bound, precision),
    )


def _in_words(text: str | Callable[[Precision], str], precision: Precision) -> str:
    return text(precision) if callable(text) else text


__all__ = ["Entry", "entries", "entry"]
